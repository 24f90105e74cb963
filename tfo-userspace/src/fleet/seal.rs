//! Sealing of what leaves the host: encryption with authentication, by the key that all hosts of a fleet have in a file.
//!
//! The cipher is XChaCha20-Poly1305. Its nonce of 24 random bytes needs no counter that hosts would have to share. The
//! name under which a value is stored is authenticated with it, so a value that is copied to another name is refused.

use anyhow::{Context as _, Result, bail};
use chacha20poly1305::{
    XChaCha20Poly1305, XNonce,
    aead::{AeadInOut as _, KeyInit as _},
};
use zeroize::Zeroizing;

use crate::keys::secret::Secret;

/// Version of the format. No other version is read.
pub const VERSION: u8 = 1;

/// Beginning of a sealed value, before the version.
const MAGIC: [u8; 4] = *b"tfoS";
/// Length of magic and version, in bytes.
const HEAD: usize = MAGIC.len() + 1;
/// Length of the nonce, in bytes.
const NONCE: usize = 24;
/// Length of the authentication tag, in bytes.
const TAG: usize = 16;

/// Key with which values are sealed and opened.
///
/// The type has no `Debug`, because keys are never printed.
pub struct SealKey(Secret);

impl SealKey {
    /// Reads the key from a file or a credential: 32 bytes or 64 hexadecimal digits, under the rules of
    /// [`Secret::read`].
    pub fn read(source: &str) -> Result<Self> {
        Secret::read(source).map(Self).context("cannot read the key of the fleet (seal_key of [keys.etcd])")
    }

    /// Makes a key of a secret.
    pub fn new(secret: Secret) -> Self {
        Self(secret)
    }

    /// Seals `plain` for storage under `name`.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).context("cannot get random numbers for a nonce (getrandom)")?;
        // The buffer must not grow before it is encrypted: growing would leave a plain copy behind.
        let mut text = Zeroizing::new(Vec::with_capacity(plain.len() + TAG));
        text.extend_from_slice(plain);
        let cipher = XChaCha20Poly1305::new(self.0.bytes().into());
        let sealed = cipher.encrypt_in_place(&XNonce::from(nonce), &associated(name), &mut *text);
        sealed.ok().context("cannot seal")?;
        Ok([&MAGIC[..], &[VERSION], &nonce, &text].concat())
    }

    /// Opens what was sealed for `name`. Fails if it was sealed with another key or for another name, or was changed.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>> {
        let Some((head, rest)) = sealed.split_first_chunk::<HEAD>() else { bail!("it is cut off") };
        if head[..MAGIC.len()] != MAGIC {
            bail!("it is not sealed by tfo");
        }
        let version = head[MAGIC.len()];
        if version != VERSION {
            bail!("it is of version {version}, and this tfo reads version {VERSION}");
        }
        let Some((nonce, text)) = rest.split_first_chunk::<NONCE>() else { bail!("it is cut off") };
        let mut text = Zeroizing::new(text.to_vec());
        let cipher = XChaCha20Poly1305::new(self.0.bytes().into());
        let opened = cipher.decrypt_in_place(&XNonce::from(*nonce), &associated(name), &mut *text);
        opened.ok().context("it was sealed with another key or for another name, or was changed since")?;
        Ok(text)
    }
}

/// Returns the associated data of a value that is stored under `name`.
fn associated(name: &str) -> Vec<u8> {
    [b"tfo fleet ", &[VERSION][..], name.as_bytes()].concat()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A key of which each byte is `byte`.
    pub(in crate::fleet) fn key(byte: u8) -> SealKey {
        SealKey::new(Secret::from_digits(format!("{byte:02x}").repeat(32).as_bytes()).unwrap())
    }

    fn complaint(key: &SealKey, name: &str, sealed: &[u8]) -> String {
        key.open(name, sealed).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_is_sealed_can_be_opened() {
        for plain in [&b""[..], b"a", &[7; 5000]] {
            let sealed = key(1).seal("a/b", plain).unwrap();
            assert_eq!(**key(1).open("a/b", &sealed).unwrap(), *plain);
            assert_ne!(sealed, key(1).seal("a/b", plain).unwrap(), "the nonce is new each time");
        }
    }

    #[test]
    fn nothing_plain_is_left() {
        let sealed = key(1).seal("a", b"the secret of the fleet").unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let sealed = key(1).seal("a", b"plain").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(key(1).open("a", &changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_cut_is_noticed() {
        let sealed = key(1).seal("a", b"plain").unwrap();
        for length in 0..sealed.len() {
            assert!(key(1).open("a", &sealed[..length]).is_err(), "{length} bytes");
            assert!(key(1).open("a", &sealed[sealed.len() - length..]).is_err(), "the last {length} bytes");
        }
        assert!(key(1).open("a", &[&sealed[..], &[0]].concat()).is_err());
    }

    #[test]
    fn another_key_name_or_version_is_refused() {
        let sealed = key(1).seal("tfo/hosts/a", b"plain").unwrap();
        assert!(complaint(&key(2), "tfo/hosts/a", &sealed).contains("another key"));
        assert!(complaint(&key(1), "tfo/hosts/b", &sealed).contains("another name"));
        let mut later = sealed;
        later[MAGIC.len()] = 2;
        assert!(complaint(&key(1), "tfo/hosts/a", &later).contains("of version 2"));
        assert!(complaint(&key(1), "a", b"{\"version\":1}").contains("not sealed by tfo"));
    }
}
