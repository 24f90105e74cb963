//! Settings of a fleet that shares its keys through etcd.

use std::path::PathBuf;

/// Table `[keys.etcd]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Etcd {
    /// URLs of the members of etcd.
    pub endpoints: Vec<String>,
    /// Beginning of the keys in etcd, with a slash at the end.
    pub prefix: String,
    /// Name of this host in the fleet; `None` for its host name.
    pub name: Option<String>,
    /// File or credential with the key by which the fleet seals what it stores.
    pub seal_key: String,
    /// File with the certificates of the authorities that etcd is checked against (PEM); `None` for no TLS.
    pub ca: Option<PathBuf>,
    /// File with the certificate of this host (PEM).
    pub certificate: Option<PathBuf>,
    /// File with the private key of that certificate (PEM).
    pub key: Option<PathBuf>,
    /// Name of the user in etcd.
    pub user: Option<String>,
    /// File with the password of the user.
    pub password_file: Option<PathBuf>,
}

/// Beginning of the keys in etcd, unless the configuration has another.
pub const PREFIX: &str = "/tfo/";

/// Parses a name of a host in the fleet.
pub fn parse_host(text: &str) -> Result<String, String> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if (1..=64).contains(&text.len()) && text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}` is no name of a host: use up to 64 letters, digits, dots, dashes and underscores"
        ))
    }
}

/// Parses the URL of a member of etcd.
pub fn parse_endpoint(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let has_port = |rest: &str| {
        let (host, port) = rest.rsplit_once(':')?;
        let is_host = !host.is_empty() && !host.contains(['/', '@', ' ']);
        (is_host && port.parse::<u16>().is_ok()).then_some(())
    };
    match rest.and_then(has_port) {
        Some(()) => Ok(text.to_owned()),
        None => Err(format!("`{text}` is no member of etcd; write, for example, https://10.0.0.1:2379")),
    }
}

/// Parses the beginning of the keys in etcd.
pub fn parse_beginning(text: &str) -> Result<String, String> {
    let is_allowed = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.len() > 1 && text.len() <= 200 && text.ends_with('/') && is_allowed {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no prefix: it ends with a slash, as /tfo/ or /site-a/tfo/"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_into_keys() {
        for name in ["a", "web-1.example", "A_1", &"x".repeat(64)] {
            assert_eq!(parse_host(name).as_deref(), Ok(name));
        }
        for name in ["", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert!(parse_host(name).is_err(), "{name}");
        }
    }

    #[test]
    fn endpoints_are_urls_with_a_port() {
        for good in ["https://10.0.0.1:2379", "http://[::1]:2379", "https://etcd.example:1"] {
            assert_eq!(parse_endpoint(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "10.0.0.1:2379", "https://", "https://a", "https://a:", "https://a:1/x", "https://u@a:1"]
        {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prefixes_end_with_a_slash() {
        assert!(parse_beginning("/tfo/").is_ok() && parse_beginning("a/").is_ok());
        for bad in ["", "/", "/tfo", "/a b/"] {
            assert!(parse_beginning(bad).is_err(), "{bad}");
        }
    }
}
