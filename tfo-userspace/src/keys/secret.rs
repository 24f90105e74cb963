//! The secret of a fleet: 32 bytes, from which each host derives the same keys as tofurkey does.

use std::{
    env,
    fs::File,
    hint::black_box,
    io::{self, Read},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    ptr::NonNull,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::mman::mlock,
    unistd::{Uid, geteuid},
};
use tfo_common::keyring::Key;
use tracing::debug;
use zeroize::{Zeroize as _, Zeroizing};

use crate::util::files::open_regular;

/// Length of a secret, in bytes.
pub const LENGTH: usize = 32;
/// Source that means standard input.
pub const STDIN: &str = "-";

/// Number of hexadecimal digits of a secret.
const DIGITS: usize = 2 * LENGTH;
/// Environment variable with the folder in which systemd puts credentials of a service (`LoadCredential=`,
/// systemd.exec(5)).
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
/// BLAKE2b personalisation of tofurkey's derivation. BLAKE2b pads it with zeros.
const PERSONAL: &[u8] = b"tofurkey";
/// BLAKE2b personalisation of fingerprints, another one, so that a fingerprint says nothing of a key.
const FINGERPRINT: &[u8] = b"tfo fingerprint";
/// Length of a key, in bytes.
const KEY: usize = 16;
/// Number of bytes that are read at most, more than any secret has.
const ENOUGH: usize = 256;

/// The secret of a fleet.
///
/// Its memory is locked against swapping if that is allowed, and zeroed on drop. The type has neither `Debug` nor
/// `Clone`, since a secret is never printed and has only one copy.
pub struct Secret {
    bytes: Box<[u8; LENGTH]>,
}

impl Secret {
    /// Reads the secret from `source`: a file, `-` for standard input, or the name of a systemd credential.
    ///
    /// A name without a slash is a credential if `$CREDENTIALS_DIRECTORY` has a file of that name, and otherwise a file
    /// in the current folder. The content must be 32 bytes, or 64 hexadecimal digits with or without a newline.
    /// tofurkey takes the first 32 bytes of any content and does not decode digits, so a fleet with tofurkey in it
    /// needs the 32 bytes.
    ///
    /// A file must be a regular file of root or of the present user, without rights for others. The rights of
    /// credentials are not checked: systemd protects them, possibly by an ACL, which shows as rights of the group.
    pub fn read(source: &str) -> Result<Self> {
        let credentials = env::var_os(CREDENTIALS).map(PathBuf::from);
        Self::read_from(source, credentials.as_deref())
    }

    fn read_from(source: &str, credentials: Option<&Path>) -> Result<Self> {
        if source == STDIN {
            // `io::stdin` would leave the secret in its buffer, which is never zeroed.
            let stdin = io::stdin().as_fd().try_clone_to_owned().context("cannot read standard input")?;
            return Self::parse(&mut File::from(stdin), "standard input");
        }
        if let Some(credential) = credential(source, credentials) {
            let what = format!("the credential {}", credential.display());
            let mut file = open_regular(&credential).with_context(|| format!("cannot read {what}"))?;
            return Self::parse(&mut file, &what);
        }
        let file = open_regular(Path::new(source));
        let mut file = file.with_context(|| format!("cannot read the secret {source}"))?;
        let metadata = file.metadata().with_context(|| format!("cannot examine {source}"))?;
        let (owner, user) = (Uid::from_raw(metadata.uid()), geteuid());
        if !is_trusted(owner, user) {
            bail!(
                "the secret {source} belongs to user {owner}, neither to root nor to user {user}, who runs this: if nobody \
                 else has seen or changed it, chown it; otherwise give the fleet a new one"
            );
        }
        let mode = metadata.mode();
        if mode & 0o077 != 0 {
            bail!(
                "others can read or change the secret {source} (mode {:04o}): if nobody has, chmod 600 {source}; \
                 otherwise give the fleet a new one",
                mode & 0o7777
            );
        }
        Self::parse(&mut file, source)
    }

    /// Parses the content of `file`. Error messages name it `what`.
    pub fn parse(file: &mut File, what: &str) -> Result<Self> {
        let mut buffer = Zeroizing::new([0; ENOUGH]);
        let length = fill(file, buffer.as_mut_slice()).with_context(|| format!("cannot read {what}"))?;
        let content = &buffer[..length];
        let mut secret = Self::locked();
        let digits = content.strip_suffix(b"\n").unwrap_or(content);
        let is_secret = if length == LENGTH {
            secret.bytes.copy_from_slice(content);
            true
        } else {
            digits.len() == DIGITS && secret.decode(digits).is_some()
        };
        if is_secret && *secret.bytes == [0; LENGTH] {
            bail!("{what} holds only zeros, which is no secret: `head -c 32 /dev/urandom` makes one");
        }
        if is_secret {
            return Ok(secret);
        }
        let size = file.metadata().map_or(0, |metadata| metadata.size());
        let found = match length {
            0 => "nothing".to_owned(),
            ENOUGH if size > ENOUGH as u64 => format!("{size} bytes"),
            ENOUGH => format!("{ENOUGH} bytes or more"),
            _ if digits.len() == DIGITS => format!("{length} bytes, not all of them hexadecimal digits"),
            _ => format!("{length} bytes"),
        };
        let hint = if length > LENGTH { " (tofurkey takes the first 32 of more: `head -c 32`)" } else { "" };
        bail!(
            "{what} holds {found}: a secret is exactly 32 bytes, as `head -c 32 /dev/urandom` makes them, or 64 \
             hexadecimal digits{hint}"
        )
    }

    /// Makes a secret from the kernel's random numbers.
    pub fn random() -> Result<Self> {
        let mut secret = Self::locked();
        getrandom::fill(secret.bytes.as_mut_slice())
            .context("cannot get random numbers for a secret (getrandom)")?;
        Ok(secret)
    }

    /// Parses 64 hexadecimal digits; `None` if they are no secret.
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        let mut secret = Self::locked();
        let is_secret = digits.len() == DIGITS && secret.decode(digits).is_some();
        (is_secret && *secret.bytes != [0; LENGTH]).then_some(secret)
    }

    /// Returns the secret as 64 hexadecimal digits. The text is secret, too.
    pub fn digits(&self) -> Zeroizing<String> {
        // The buffer must not grow: growing would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(DIGITS));
        for byte in self.bytes.iter() {
            for digit in [byte >> 4, byte & 15] {
                text.extend(char::from_digit(digit.into(), 16));
            }
        }
        text
    }

    /// Returns the path of the file that [`read`](Self::read) would read; `None` for standard input.
    pub fn path(source: &str) -> Option<PathBuf> {
        let credentials = env::var_os(CREDENTIALS).map(PathBuf::from);
        let file = || credential(source, credentials.as_deref()).unwrap_or_else(|| source.into());
        (source != STDIN).then(file)
    }

    /// Returns the bytes, for a cipher.
    pub(crate) fn bytes(&self) -> &[u8; LENGTH] {
        &self.bytes
    }

    /// Makes a secret of zeros, in locked memory.
    fn locked() -> Self {
        let bytes = Box::new([0; LENGTH]);
        // SAFETY: the range is a live allocation, and locking only keeps its pages from swap. The pages are never
        // unlocked, since locks do not nest and another secret may be on the same page.
        let locked = unsafe { mlock(NonNull::from(&*bytes).cast(), LENGTH) };
        if let Err(error) = locked {
            debug!("cannot keep the secret from being swapped out (mlock): {error}");
        }
        Self { bytes }
    }

    /// Decodes 64 hexadecimal digits into the secret; `None` if a character is no digit.
    fn decode(&mut self, digits: &[u8]) -> Option<()> {
        let value = |digit: u8| char::from(digit).to_digit(16);
        for (byte, pair) in self.bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::try_from(value(pair[0])? << 4 | value(pair[1])?).ok()?;
        }
        Some(())
    }

    /// Derives key `number` of the fleet. It is bit by bit the key that tofurkey derives.
    ///
    /// The derivation is libsodium's `crypto_kdf_blake2b_derive_from_key`: BLAKE2b with 16 bytes of output, the secret
    /// as the key, the number as 8 little-endian bytes of salt and the context as the personalisation. tofurkey writes
    /// these bytes in order into the text of the sysctl, so the text's words are big-endian.
    pub fn key(&self, number: u64) -> Key {
        let hash = self.hash(&number.to_le_bytes(), PERSONAL);
        let mut words = [0; KEY / 4];
        for (word, bytes) in words.iter_mut().zip(hash.as_bytes().chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        Key::from_words(words)
    }

    /// Returns sixteen hexadecimal digits that identify the secret without revealing it.
    pub fn fingerprint(&self) -> String {
        let hash = self.hash(&[], FINGERPRINT);
        hash.as_bytes().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Returns the BLAKE2b hash of nothing, with the secret as the key. It has the length of a key.
    fn hash(&self, salt: &[u8], personal: &[u8]) -> blake2b_simd::Hash {
        let mut params = blake2b_simd::Params::new();
        params.hash_length(KEY).key(self.bytes.as_slice()).salt(salt).personal(personal);
        let mut state = params.to_state();
        let hash = state.finalize();
        // The library zeroes nothing. Both values hold the secret in a block, which these calls overwrite.
        params.key(&[]);
        state.update(&[0; blake2b_simd::BLOCKBYTES]);
        black_box((&params, &state));
        hash
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        // Every byte is compared, so that the time says nothing of the first that differs.
        let differences = self.bytes.iter().zip(other.bytes.iter()).map(|(one, other)| one ^ other);
        differences.fold(0, |all, difference| all | difference) == 0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

/// Whether a file of `owner` is trusted if `user` runs tfo.
fn is_trusted(owner: Uid, user: Uid) -> bool {
    owner.is_root() || owner == user
}

/// Returns the file of the credential that `source` names, by its name or by a path into the folder of credentials.
fn credential(source: &str, credentials: Option<&Path>) -> Option<PathBuf> {
    let credentials = credentials.filter(|folder| folder.is_absolute())?;
    let name = Path::new(source).strip_prefix(credentials).unwrap_or(Path::new(source)).to_str()?;
    let path = credentials.join(name);
    (!name.contains('/') && path.is_file()).then_some(path)
}

/// Reads until the end of `file` or of `buffer`. Returns the number of bytes.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use tempfile::TempDir;

    use super::*;
    use crate::model::keys::key_text;

    const DIGITS: &str = "363ec6a05e76eedeb9eb73bc5c25ca5f13f7c1df70c9af3531db4c83d23a8f6b";

    /// The secret of tofurkey's own test.
    pub(in crate::keys) fn secret() -> Secret {
        Secret::from_digits(DIGITS.as_bytes()).unwrap()
    }

    fn file(folder: &TempDir, content: &[u8], mode: u32) -> String {
        let path = folder.path().join("secret");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Returns the error of reading `content` from a file.
    fn complaint(content: &[u8]) -> String {
        let folder = TempDir::new().unwrap();
        let path = file(&folder, content, 0o600);
        let complaint = format!("{:#}", Secret::read_from(&path, None).err().expect("it is refused"));
        assert!(complaint.starts_with(&format!("{path} holds ")), "{complaint}");
        complaint
    }

    #[test]
    fn keys_are_those_of_tofurkey() {
        // The vectors are from tofurkey's t/quick.sh: time 1000000, interval 86400.
        assert_eq!(*key_text(secret().key(11)), "c998252e-8f89667d-31961e08-3897526b");
        assert_eq!(*key_text(secret().key(12)), "1c9ca1a5-9d295055-f8e3d4df-7107b577");
    }

    #[test]
    fn the_number_takes_all_of_its_eight_bytes() {
        let texts = [0, 1, 1 << 8, 1 << 32, 1 << 56, u64::MAX].map(|number| key_text(secret().key(number)));
        for (at, text) in texts.iter().enumerate() {
            assert!(!texts[..at].contains(text), "{at}");
        }
    }

    #[test]
    fn digits_come_back() {
        assert_eq!(*secret().digits(), DIGITS);
        assert!(Secret::from_digits(&DIGITS.as_bytes()[1..]).is_none());
        assert!(Secret::from_digits("0".repeat(64).as_bytes()).is_none());
        assert!(secret() == Secret::from_digits(DIGITS.to_uppercase().as_bytes()).unwrap());
        assert!(secret() != Secret::from_digits(DIGITS.replace("6b", "6c").as_bytes()).unwrap());
    }

    #[test]
    fn a_fingerprint_is_no_key() {
        let shown = secret().fingerprint();
        assert_eq!(shown.len(), 16);
        assert!(!DIGITS.contains(&shown) && !key_text(secret().key(0)).replace('-', "").contains(&shown));
        assert_ne!(shown, Secret::from_digits(DIGITS.replace("6b", "6c").as_bytes()).unwrap().fingerprint());
    }

    #[test]
    fn bytes_and_digits_are_read() {
        let folder = TempDir::new().unwrap();
        let raw = *secret().bytes;
        let forms = [
            raw.to_vec(),
            DIGITS.as_bytes().to_vec(),
            format!("{DIGITS}\n").into_bytes(),
            format!("{}\n", DIGITS.to_uppercase()).into_bytes(),
        ];
        for (form, content) in forms.iter().enumerate() {
            for mode in [0o600, 0o400] {
                let path = file(&folder, content, mode);
                assert!(*Secret::read_from(&path, None).unwrap().bytes == raw, "{form} {mode:o}");
                fs::remove_file(path).unwrap();
            }
        }
        // 32 digits are taken as 32 bytes: only 64 digits are decoded.
        let path = file(&folder, &DIGITS.as_bytes()[..LENGTH], 0o600);
        assert!(Secret::read_from(&path, None).unwrap().bytes.as_slice() == &DIGITS.as_bytes()[..LENGTH]);
    }

    #[test]
    fn another_length_is_refused_by_what_was_found() {
        let no_digit = DIGITS.replace('c', "g");
        for (content, found) in [
            (&b""[..], "holds nothing:"),
            (&[7; 31], "holds 31 bytes:"),
            (&[7; 33], "holds 33 bytes:"),
            (&DIGITS.as_bytes()[..63], "holds 63 bytes:"),
            (no_digit.as_bytes(), "holds 64 bytes, not all of them hexadecimal digits:"),
            (format!("{}+f", &DIGITS[2..]).as_bytes(), "holds 64 bytes, not all of them hexadecimal digits:"),
            (format!("{DIGITS}\n\n").as_bytes(), "holds 66 bytes:"),
            (&[7; 256], "holds 256 bytes or more:"),
            (&[7; 5000], "holds 5000 bytes:"),
        ] {
            let complaint = complaint(content);
            assert!(complaint.contains(found), "{complaint}");
            assert_eq!(complaint.contains("head -c 32`)"), content.len() > LENGTH, "{complaint}");
            assert!(!complaint.contains(&DIGITS[2..10]), "{complaint}");
        }
    }

    #[test]
    fn a_file_that_is_not_ours_alone_is_refused() {
        let folder = TempDir::new().unwrap();
        for mode in [0o640, 0o620, 0o604, 0o602, 0o644, 0o610, 0o601] {
            let path = file(&folder, &[7; LENGTH], mode);
            let complaint = format!("{:#}", Secret::read_from(&path, None).err().expect("it is refused"));
            assert!(complaint.contains(&format!("chmod 600 {path}")), "{complaint}");
            assert!(complaint.contains(&format!("{mode:04o}")), "{complaint}");
        }
    }

    #[test]
    fn a_missing_or_special_file_is_named() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("none");
        let error = Secret::read_from(path.to_str().unwrap(), Some(folder.path())).err().unwrap();
        assert!(format!("{error:#}").starts_with(&format!("cannot read the secret {}", path.display())));
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        let pipe = folder.path().join("pipe");
        mkfifo(&pipe, Mode::from_bits_truncate(0o600)).unwrap();
        for (path, kind) in
            [(folder.path(), "is a folder"), (&pipe, "is a pipe"), (Path::new("/dev/zero"), "is a device")]
        {
            let error = format!("{:#}", Secret::read_from(path.to_str().unwrap(), None).err().unwrap());
            assert!(error.contains(kind) && error.contains("standard input"), "{error}");
        }
    }

    #[test]
    fn only_root_and_the_user_are_trusted() {
        let [root, user, other] = [0, 7, 8].map(Uid::from_raw);
        assert!(is_trusted(root, user) && is_trusted(user, user) && is_trusted(root, root));
        assert!(!is_trusted(other, user) && !is_trusted(user, root));
    }

    #[test]
    fn zeros_are_no_secret() {
        let digits = "0".repeat(2 * LENGTH);
        for content in [[0; LENGTH].as_slice(), digits.as_bytes(), format!("{digits}\n").as_bytes()] {
            assert!(complaint(content).contains("holds only zeros"), "{content:?}");
        }
    }

    #[test]
    fn a_bare_name_is_a_credential_first() {
        let folder = TempDir::new().unwrap();
        // For a service with its own user, systemd sets an ACL, whose mask shows as rights of the group.
        let path = file(&folder, &[7; LENGTH], 0o440);
        for source in ["secret", &path] {
            assert!(
                *Secret::read_from(source, Some(folder.path())).unwrap().bytes == [7; LENGTH],
                "{source}"
            );
        }
        fs::create_dir(folder.path().join("sub")).unwrap();
        for source in ["./secret", "sub/../secret", "..", ".", "sub", "", "other"] {
            assert!(credential(source, Some(folder.path())).is_none(), "{source:?}");
        }
        assert!(credential("secret", None).is_none());
        assert!(credential("Cargo.toml", Some(Path::new(""))).is_none());

        fs::write(folder.path().join("short"), [7; 31]).unwrap();
        let error = Secret::read_from("short", Some(folder.path())).err().unwrap();
        assert!(format!("{error:#}").starts_with("the credential "), "{error:#}");
    }
}
