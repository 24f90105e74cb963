//! Walk over the TCP options: `tcp_parse_options` and `tcp_parse_fastopen_option` (net/ipv4/tcp_input.c).

use tfo_common::class::Class::{self, *};

use super::{Table, syn};
use crate::{
    keys::{BACKUP, CURRENT},
    packet::{Carry, Ip, Tcp},
};

const DATA: &[u8] = b"some data";

/// Adds a SYN with `options` and data, over both families.
fn case(table: &mut Table, name: &str, options: impl Fn(Tcp) -> Tcp, class: Class) {
    table.both(name, |ip| options(ip.syn()).data(DATA), syn(class, DATA.len()));
}

pub(super) fn add(table: &mut Table) {
    lengths(table);
    experimental(table);
    broken(table);
    several(table);
    places(table);
    stacks(table);
}

/// Returns the class of a cookie of `len` bytes that no key made. An odd length is no Fast Open option, an empty one is
/// a request. The kernel stores 4 to 16 bytes and refuses all but 8. Other lengths count as absent.
fn class_of_length(len: usize) -> Class {
    match len {
        _ if len % 2 == 1 => OptionIgnored,
        0 => CookieRequest,
        8 => CookieUnknown,
        4..=16 => CookieBadLength,
        _ => OptionIgnored,
    }
}

/// Adds every length that fits into the 40 bytes of the option area.
fn lengths(table: &mut Table) {
    for len in 0..=38 {
        let cookie = vec![7; len];
        case(table, &format!("{len}-byte cookie"), |tcp| tcp.fast_open(&cookie), class_of_length(len));
    }
    for len in 0..=36 {
        let cookie = vec![7; len];
        let name = format!("{len}-byte cookie, experimental");
        case(table, &name, |tcp| tcp.experimental(Tcp::MAGIC, &cookie), class_of_length(len));
    }
}

/// Adds options of kind 254, which are Fast Open only with its magic number. So their length is at least four.
fn experimental(table: &mut Table) {
    let cookie = |key| move |tcp: Tcp| tcp.clone().experimental(Tcp::MAGIC, &tcp.cookie(key));
    case(table, "experimental, the primary key's", cookie(CURRENT), CookieCurrent);
    case(table, "experimental, the backup key's", cookie(BACKUP), CookieBackup);
    case(table, "experimental, another magic", |tcp| tcp.experimental(0xf988, &[7; 8]), PlainSyn);
    case(table, "experimental, magic swapped", |tcp| tcp.experimental(0x89f9, &[7; 8]), PlainSyn);
    case(table, "experimental, no magic", |tcp| tcp.option(254, &[]), PlainSyn);
    case(table, "experimental, half a magic", |tcp| tcp.option(254, &[0xf9]), PlainSyn);
    // The magic number lies behind the option's end, so it does not count.
    case(table, "experimental, magic outside", |tcp| tcp.option_bytes(&[254, 2, 0xf9, 0x89]), PlainSyn);
    case(table, "experimental, magic half outside", |tcp| tcp.option_bytes(&[254, 3, 0xf9, 0x89]), PlainSyn);
    case(table, "kind 253 with the magic", |tcp| tcp.option(253, &[0xf9, 0x89]), PlainSyn);
}

/// Adds broken options. The kernel stops silently and keeps what it has found so far.
fn broken(table: &mut Table) {
    for kind in [34, 254, 2, 77] {
        let mut stops = |what: &str, bytes: &[u8]| {
            let name = format!("kind {kind} {what}");
            case(table, &name, |tcp| tcp.option_bytes(bytes), PlainSyn);
            let name = format!("{name}, before a cookie");
            case(table, &name, |tcp| tcp.option_bytes(bytes).cookie_of(CURRENT), PlainSyn);
            let name = format!("kind {kind} {what}, behind a cookie");
            case(table, &name, |tcp| tcp.cookie_of(CURRENT).option_bytes(bytes), CookieCurrent);
        };
        stops("of length 0", &[kind, 0]);
        stops("of length 1", &[kind, 1]);
        stops("of length 255", &[kind, 255]);
        stops("of length 41", &[kind, 41]);
    }
    // The cookie continues in the data, so it is broken.
    let one_short = |ip: Ip| {
        let tcp = ip.syn();
        let cookie = tcp.cookie(CURRENT);
        tcp.nops(3).option_bytes(&[34, 10]).option_bytes(&cookie[..7]).data(&cookie[7..])
    };
    table.both("cookie one byte past the end", one_short, syn(PlainSyn, 1));
    let hidden = |ip: Ip| ip.syn().data_offset(5).cookie_of(CURRENT);
    table.both("cookie in the data", hidden, syn(PlainSyn, 12));
    let last_words = |ip: Ip| ip.syn().data_offset(7).cookie_of(CURRENT);
    table.both("data begins inside the cookie", last_words, syn(PlainSyn, 4));

    case(table, "end of list at once", |tcp| tcp.eol().cookie_of(CURRENT), PlainSyn);
    case(table, "end of list behind MSS", |tcp| tcp.mss(1460).eol().cookie_of(CURRENT), PlainSyn);
    case(table, "end of list behind the cookie", |tcp| tcp.cookie_of(CURRENT).eol(), CookieCurrent);
    let between = |tcp: Tcp| tcp.cookie_of(CURRENT).eol().cookie_of(BACKUP);
    case(table, "end of list between two cookies", between, CookieCurrent);
    case(table, "end of list behind a bad option", |tcp| tcp.fast_open(&[7; 3]).eol(), OptionIgnored);
    case(table, "forty ends of list", |tcp| tcp.option_bytes(&[0; 40]), PlainSyn);
    case(table, "forty bytes of 255", |tcp| tcp.option_bytes(&[255; 40]), PlainSyn);
    case(table, "Fast Open inside another option", |tcp| tcp.option(77, &[34, 2, 34, 2]), PlainSyn);
    case(table, "request inside a cookie", |tcp| tcp.fast_open(&[34, 2, 34, 2, 34, 2]), CookieBadLength);
}

/// Adds several options. The last one counts. An odd one is ignored. One of a bad even length discards those before it.
fn several(table: &mut Table) {
    let mut after_cookie = |name: &str, second: fn(Tcp) -> Tcp, class| {
        let name = format!("cookie, then {name}");
        case(table, &name, |tcp| second(tcp.cookie_of(CURRENT)), class);
    };
    after_cookie("another key's", |tcp| tcp.cookie_of(BACKUP), CookieBackup);
    after_cookie("an unknown one", |tcp| tcp.fast_open(&[7; 8]), CookieUnknown);
    after_cookie("a request", Tcp::request, CookieRequest);
    after_cookie("one byte", |tcp| tcp.fast_open(&[7]), CookieCurrent);
    after_cookie("seven bytes", |tcp| tcp.fast_open(&[7; 7]), CookieCurrent);
    after_cookie("17 bytes", |tcp| tcp.fast_open(&[7; 17]), CookieCurrent);
    after_cookie("2 bytes", |tcp| tcp.fast_open(&[7; 2]), OptionIgnored);
    after_cookie("4 bytes", |tcp| tcp.fast_open(&[7; 4]), CookieBadLength);
    after_cookie("16 bytes", |tcp| tcp.fast_open(&[7; 16]), CookieBadLength);
    after_cookie("18 bytes", |tcp| tcp.fast_open(&[7; 18]), OptionIgnored);
    after_cookie("28 bytes", |tcp| tcp.fast_open(&[7; 28]), OptionIgnored);
    after_cookie("an experimental request", |tcp| tcp.experimental(Tcp::MAGIC, &[]), CookieRequest);
    after_cookie("an odd experimental one", |tcp| tcp.experimental(Tcp::MAGIC, &[7]), CookieCurrent);
    after_cookie("an experimental 18 bytes", |tcp| tcp.experimental(Tcp::MAGIC, &[7; 18]), OptionIgnored);
    after_cookie("another experiment", |tcp| tcp.experimental(0xe2d4, &[7; 8]), CookieCurrent);
    after_cookie("18 bytes and an odd one", |tcp| tcp.fast_open(&[7; 18]).fast_open(&[7; 1]), OptionIgnored);
    after_cookie("2 bytes and a cookie", |tcp| tcp.fast_open(&[7; 2]).cookie_of(BACKUP), CookieBackup);

    let mut then_cookie = |name: &str, first: fn(Tcp) -> Tcp| {
        case(table, &format!("{name}, then cookie"), |tcp| first(tcp).cookie_of(CURRENT), CookieCurrent);
    };
    then_cookie("another key's", |tcp| tcp.cookie_of(BACKUP));
    then_cookie("request", Tcp::request);
    then_cookie("odd", |tcp| tcp.fast_open(&[7; 9]));
    then_cookie("2 bytes", |tcp| tcp.fast_open(&[7; 2]));
    then_cookie("16 bytes", |tcp| tcp.fast_open(&[7; 16]));
    then_cookie("18 bytes", |tcp| tcp.fast_open(&[7; 18]));
    then_cookie("experimental request", |tcp| tcp.experimental(Tcp::MAGIC, &[]));

    case(table, "odd, then request", |tcp| tcp.fast_open(&[7; 3]).request(), CookieRequest);
    case(table, "request, then odd", |tcp| tcp.request().fast_open(&[7; 3]), CookieRequest);
    case(table, "request, then 18 bytes", |tcp| tcp.request().fast_open(&[7; 18]), OptionIgnored);
    case(table, "twenty requests", |tcp| (0..20).fold(tcp, |tcp, _| tcp.request()), CookieRequest);
}

/// Adds the option at every place, up to the end of the largest area.
fn places(table: &mut Table) {
    case(table, "nothing but forty no-operations", |tcp| tcp.nops(40), PlainSyn);
    for before in 0..=30 {
        let name = format!("cookie behind {before} no-operations");
        case(table, &name, |tcp| tcp.nops(before).cookie_of(CURRENT), CookieCurrent);
    }
    case(table, "request in the last two bytes", |tcp| tcp.nops(38).request(), CookieRequest);
    let last = |tcp: Tcp| tcp.nops(36).experimental(Tcp::MAGIC, &[]);
    case(table, "experimental request in the last four bytes", last, CookieRequest);
    case(table, "one cookie byte too many", |tcp| tcp.nops(37).option_bytes(&[34, 4, 7]), PlainSyn);
    for kind in [0, 1, 34, 254, 255] {
        let name = format!("a lone last byte {kind}");
        case(table, &name, |tcp| tcp.nops(39).option_bytes(&[kind]), PlainSyn);
        let name = format!("{name} behind a cookie");
        case(table, &name, |tcp| tcp.cookie_of(CURRENT).nops(29).option_bytes(&[kind]), CookieCurrent);
    }
}

/// Adds the option layouts of common stacks.
fn stacks(table: &mut Table) {
    case(table, "Linux, plain", Tcp::linux_options, PlainSyn);
    case(table, "Linux, request", |tcp| tcp.linux_options().request().nops(2), CookieRequest);
    case(table, "Linux, cookie", |tcp| tcp.linux_options().cookie_of(CURRENT).nops(2), CookieCurrent);
    // Used up to Linux 4.0, and later towards servers that answer in this form.
    let request = |tcp: Tcp| tcp.linux_options().experimental(Tcp::MAGIC, &[]);
    case(table, "Linux, experimental request", request, CookieRequest);
    let cookie = |tcp: Tcp| tcp.clone().linux_options().experimental(Tcp::MAGIC, &tcp.cookie(CURRENT));
    case(table, "Linux, experimental cookie", cookie, CookieCurrent);
    let no_timestamps = |tcp: Tcp| tcp.linux_options_without_timestamps().cookie_of(CURRENT).nops(2);
    case(table, "Linux without timestamps, cookie", no_timestamps, CookieCurrent);

    case(table, "macOS, plain", |tcp| tcp.macos_options().eol().eol(), PlainSyn);
    case(table, "macOS, request", |tcp| tcp.macos_options().request(), CookieRequest);
    case(table, "macOS, cookie", |tcp| tcp.macos_options().cookie_of(CURRENT), CookieCurrent);

    case(table, "Windows, plain", Tcp::windows_options, PlainSyn);
    case(table, "Windows, request", |tcp| tcp.windows_options().request().nops(2), CookieRequest);
    case(table, "Windows, cookie", |tcp| tcp.windows_options().cookie_of(CURRENT).nops(2), CookieCurrent);
}
