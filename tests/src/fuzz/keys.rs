//! Random texts as keys, as a secret, as a request or as the kernel's counters: each is read as its format says, or
//! refused.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use tfo_common::keyring::Key;
use tfo_userspace::{
    control::Request,
    kernel::{sysctl::KernelKeys, tcp_ext::TcpExt},
    keys::secret::Secret,
    model::keys::{key_text, parse_key},
};

/// Checks one text.
pub fn check(data: &[u8]) {
    secret(data);
    let Ok(text) = str::from_utf8(data) else { return };
    assert!(parse_key(text).map(plain) == written(text));
    sysctl(text);
    order(text);
    tcp_ext(text);
}

/// Returns a text of each kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let one = "a0bf63f7-ed803d81-cd641d30-cebc4a90";
    let texts = [
        one,
        &format!("{one}\n"),
        &format!("{one},1-2-3-4\n"),
        "00000000-00000000-00000000-00000000\n",
        &"5a".repeat(16),
        &"5A".repeat(32),
        &format!("{}\n", "5a".repeat(32)),
        r#"{"rotate":{"emergency":true}}"#,
        r#"{"hide":{"interface":"eth0","what":{"source":"2001:db8::/64"},"on":true}}"#,
        &format!(r#"{{"import":{{"key":"{one}"}}}}"#),
        "TcpExt: A TCPFastOpenCookieReqd TCPFastOpenPassive TCPFastOpenPassiveAltKey TCPFastOpenPassiveFail \
         TCPFastOpenListenOverflow TCPFastOpenActive TCPFastOpenActiveFail TCPFastOpenBlackhole\n\
         TcpExt: 9 1 2 3 4 5 6 7 8\nIpExt: X\nIpExt: 7\n",
    ];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

/// Panics if a word of `message` is a key.
pub(super) fn assert_shows_no_key(message: &str) {
    let words = message.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    assert!(words.into_iter().all(|word| parse_key(word).is_none()), "{message}");
}

/// Returns the key in `text` as the kernel writes it, with each word padded with zeros.
fn written(text: &str) -> Option<String> {
    let full = text.split('-').map(|word| format!("{word:0>8}")).collect::<Vec<_>>().join("-");
    let has_form = full.len() == 35
        && full.bytes().enumerate().all(|(place, byte)| match place % 9 {
            8 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    let is_complete = text.split('-').all(|word| !word.is_empty());
    (has_form && is_complete).then(|| full.to_ascii_lowercase())
}

/// Returns the text of a key that need not be wiped.
pub(super) fn plain(key: Key) -> String {
    key_text(key).to_string()
}

fn sysctl(text: &str) {
    let keys = KernelKeys::parse(text).map(|keys| [keys.current, keys.backup].map(|key| key.map(plain)));
    let words: Option<Vec<_>> = text.trim_end().split(',').map(written).collect();
    let is_set = |word: &String| word != "00000000-00000000-00000000-00000000";
    let expected = match words.as_deref() {
        Some([current]) => Some([Some(current.clone()), None]),
        Some([current, backup]) => Some([Some(current.clone()), Some(backup.clone())]),
        _ => None,
    };
    assert!(keys == expected.map(|keys| keys.map(|key| key.filter(is_set))));
}

/// Checks that a request survives being sent and parsed again.
fn order(text: &str) {
    let Ok(order) = serde_json::from_str::<Request>(text) else { return };
    let sent = serde_json::to_string(&order).expect("an order can be sent");
    let heard: Request = serde_json::from_str(&sent).expect("an order can be heard");
    assert_eq!(sent, serde_json::to_string(&heard).expect("it can be sent again"));
    if let Request::Import { key } = order {
        assert!(matches!(heard, Request::Import { key: heard } if heard == key));
    }
}

fn tcp_ext(text: &str) {
    let Some(counters) = TcpExt::parse(text) else { return };
    for (_, value) in counters.named() {
        assert!(
            text.split_ascii_whitespace().any(|word| word.parse() == Ok(value)),
            "{value} stands nowhere"
        );
    }
}

/// Checks secrets: 32 bytes, or the digits for them, give the same keys, unless all are zero. An error names the
/// length.
fn secret(data: &[u8]) {
    let content = data.strip_suffix(b"\n").unwrap_or(data);
    let other: Vec<u8> = if data.len() == 32 {
        data.iter().map(|byte| format!("{byte:02X}")).collect::<String>().into()
    } else if content.len() == 64 && content.iter().all(u8::is_ascii_hexdigit) {
        let digits = str::from_utf8(content).expect("digits");
        let byte = |place| u8::from_str_radix(&digits[place..place + 2], 16).expect("two digits");
        (0..64).step_by(2).map(byte).collect()
    } else {
        let zeros = content.iter().map(|_| 0).chain(data[content.len()..].iter().copied());
        return assert_eq!(
            read(data).err().expect("it is none"),
            read(&zeros.collect::<Vec<_>>()).err().expect("nor this")
        );
    };
    let is_zero = data.iter().all(|byte| *byte == 0) || content.iter().all(|digit| *digit == b'0');
    // 32 digits `0` are a secret of 32 bytes, not of zeros.
    if is_zero && (data.len() != 32 || data[0] == 0) {
        assert!([data, &other].into_iter().all(|content| read(content).is_err()));
        return;
    }
    let [secret, other] =
        [data, &other].map(|content| read(content).unwrap_or_else(|error| panic!("{error}")));
    assert!([0, 1, u64::MAX].iter().all(|n| secret.key(*n) == other.key(*n)));
}

fn read(content: &[u8]) -> Result<Secret, String> {
    let mut file = File::from(memfd_create("secret", MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.write_all(content).and_then(|()| file.rewind()).expect("it can be written");
    Secret::parse(&mut file, "x").map_err(|error| format!("{error:#}"))
}
