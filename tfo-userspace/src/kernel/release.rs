//! Release of the kernel, and the oldest one that is supported.

use std::fs;

use anyhow::{Context as _, Result};

/// Oldest kernel on which the program is known to load: major and minor version.
pub const OLDEST: (u32, u32) = (5, 10);

const RELEASE: &str = "/proc/sys/kernel/osrelease";

/// Reads the release of the running kernel, such as `6.1.0-28-amd64`.
pub fn running() -> Result<String> {
    let release = fs::read_to_string(RELEASE).with_context(|| format!("cannot read {RELEASE}"))?;
    Ok(release.trim_end().to_owned())
}

/// Returns the major and minor version of `release`.
pub fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version("5.10.0-28-amd64"), Some((5, 10)));
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("7.3"), Some((7, 3)));
        assert_eq!(version("7.3-rc1"), Some((7, 3)));
        assert_eq!(version("Darwin"), None);
        assert!(version("5.9.16") < Some(OLDEST), "as numbers, not as text");
    }
}
