//! Ways in which the host takes data without a Fast Open cookie (`tcp_fastopen_no_cookie`).

use crate::kernel::sysctl::{SERVER, SERVER_NO_COOKIE};

/// Number of listeners or routes that are named.
const FEW: usize = 5;

/// The ways in which the host takes data without a cookie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NoCookie {
    /// Whether bit 0x200 of `net.ipv4.tcp_fastopen` allows it to all listeners.
    pub sysctl: bool,
    /// Listeners with TCP_FASTOPEN_NO_COOKIE.
    pub listeners: Vec<String>,
    /// Destinations of routes with `fastopen_no_cookie`.
    pub routes: Vec<String>,
}

impl NoCookie {
    /// Whether `net.ipv4.tcp_fastopen` lets every listener with Fast Open take data without a cookie.
    pub const fn is_for_all(tcp_fastopen: u32) -> bool {
        tcp_fastopen & SERVER != 0 && tcp_fastopen & SERVER_NO_COOKIE != 0
    }

    /// Whether there is no such way.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the ways as text, or `None` if there are none.
    pub fn text(&self) -> Option<String> {
        let Self { sysctl, listeners, routes } = self;
        let mut ways = Vec::new();
        if *sysctl {
            ways.push("net.ipv4.tcp_fastopen has bit 0x200".to_owned());
        }
        if !listeners.is_empty() {
            ways.push(format!("TCP_FASTOPEN_NO_COOKIE on {}", few(listeners)));
        }
        if !routes.is_empty() {
            ways.push(format!("fastopen_no_cookie on the route to {}", few(routes)));
        }
        (!ways.is_empty()).then(|| format!("data is taken without a cookie: {}", ways.join("; ")))
    }

    /// Returns what that means for protections.
    pub fn advice(&self) -> String {
        let mut advice = "SYNs without a good cookie are served with their data, also from forged addresses; a protection \
                          drops what it would hide elsewhere"
            .to_owned();
        if !self.routes.is_empty() {
            advice += ", but can't stop clients behind such a route";
        }
        advice
    }
}

/// Joins the first few of `texts`, and says how many there are beyond.
fn few(texts: &[String]) -> String {
    match texts.len().checked_sub(FEW) {
        Some(more @ 1..) => format!("{} and {more} more", texts[..FEW].join(", ")),
        _ => texts.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_is_named() {
        assert_eq!(NoCookie::default().text(), None);
        let listeners: Vec<_> = (1..=7).map(|n| n.to_string()).collect();
        let all = NoCookie { sysctl: true, routes: listeners[..1].to_vec(), listeners };
        let expected = "data is taken without a cookie: net.ipv4.tcp_fastopen has bit 0x200; TCP_FASTOPEN_NO_COOKIE on \
                        1, 2, 3, 4, 5 and 2 more; fastopen_no_cookie on the route to 1";
        assert_eq!(all.text().as_deref(), Some(expected));
        assert!(all.advice().ends_with("route"));
        assert!(!NoCookie { routes: Vec::new(), ..all }.advice().contains("route"));
    }

    #[test]
    fn without_the_server_bit_nothing_is_taken() {
        assert!(NoCookie::is_for_all(0x202));
        assert!(!NoCookie::is_for_all(0x201) && !NoCookie::is_for_all(0x3));
    }
}
