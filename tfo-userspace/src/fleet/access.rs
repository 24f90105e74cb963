//! Access of a host to etcd: addresses, names, certificates and the key of the fleet, read from their files.

use std::{fs, io::Read as _, os::unix::fs::MetadataExt as _, path::Path};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use super::seal::SealKey;
use crate::{
    model::fleet::{Etcd, parse_host},
    util::files::open_regular,
};

/// Maximum length of a file with certificates, in bytes.
const LONGEST: u64 = 1 << 20;

/// Access to the fleet.
pub struct Access {
    /// URLs of the members of etcd.
    pub endpoints: Vec<String>,
    /// Names of the values in etcd.
    pub names: Names,
    /// Name of this host.
    pub host: String,
    /// Key of the fleet.
    pub key: SealKey,
    /// Certificates for TLS; `None` without TLS.
    pub tls: Option<Tls>,
    /// Name and password of the user in etcd.
    pub user: Option<(String, Zeroizing<String>)>,
}

/// Certificates for TLS, in PEM.
pub struct Tls {
    /// Authorities that etcd's certificate is checked against.
    pub ca: Vec<u8>,
    /// Certificate of this host, and its private key.
    pub identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

/// Names of the values in etcd.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Makes the names below `prefix`.
    pub fn below(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// Name of the document.
    pub fn document(&self) -> String {
        format!("{}secret", self.prefix)
    }

    /// Beginning of the names of the hosts under a lease.
    pub fn live(&self) -> String {
        format!("{}hosts/", self.prefix)
    }

    /// Beginning of the names of all hosts that were ever there.
    pub fn known(&self) -> String {
        format!("{}known/", self.prefix)
    }
}

impl Access {
    /// Reads all files that `settings` name. Fails in a build without the feature `etcd`.
    pub fn read(settings: &Etcd) -> Result<Self> {
        if cfg!(not(feature = "etcd")) {
            bail!(
                "this tfo was built without etcd: use one of the packages, or build it with the feature `etcd`"
            );
        }
        let host = settings.name.clone().map_or_else(host_name, Ok)?;
        let tls = settings.ca.as_deref().map(|ca| tls(settings, ca)).transpose()?;
        let user = match (&settings.user, &settings.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), password(file)?)),
            _ => None,
        };
        Ok(Self {
            endpoints: settings.endpoints.clone(),
            names: Names::below(&settings.prefix),
            host,
            key: SealKey::read(&settings.seal_key)?,
            tls,
            user,
        })
    }
}

fn tls(settings: &Etcd, ca: &Path) -> Result<Tls> {
    let ca = read(ca)?.to_vec();
    let identity = match (&settings.certificate, &settings.key) {
        (Some(certificate), Some(key)) => Some((read(certificate)?.to_vec(), private(key)?)),
        _ => None,
    };
    Ok(Tls { ca, identity })
}

fn password(file: &Path) -> Result<Zeroizing<String>> {
    let bytes = private(file)?;
    let text = str::from_utf8(&bytes).ok().with_context(|| format!("{} is not text", file.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    if text.is_empty() {
        bail!("{} has no password", file.display());
    }
    Ok(Zeroizing::new(text.to_owned()))
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let file = open_regular(path)?;
    let length = file.metadata().with_context(|| format!("cannot examine {}", path.display()))?.len();
    if length > LONGEST {
        bail!("{} has {length} bytes; is it the right file?", path.display());
    }
    let mut content = Zeroizing::new(Vec::with_capacity(LONGEST.min(length + 1) as usize));
    file.take(LONGEST)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(content)
}

/// Reads a file that nobody but its owner, root or the present user, may read or change.
fn private(path: &Path) -> Result<Zeroizing<Vec<u8>>> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot examine {}", path.display()))?;
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != 0 && owner != user {
        bail!(
            "{} belongs to user {owner}, neither to root nor to user {user}, who runs this",
            path.display()
        );
    }
    if metadata.mode() & 0o077 != 0 {
        bail!(
            "others can read or change {} (mode {:04o}): if nobody has, chmod 600 it; otherwise replace it",
            path.display(),
            metadata.mode() & 0o7777
        );
    }
    read(path)
}

/// Returns the name of this host (sethostname).
fn host_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host's name")?;
    parse_host(name.trim_end()).map_err(|why| anyhow::anyhow!("{why}, or give another (name of [keys.etcd])"))
}
