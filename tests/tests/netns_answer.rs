//! The protection `answer`: handshakes whose SYN-ACK the program sends, with the real kernel at both ends. Figures are
//! printed: `cargo test -p tfo-tests --test netns_answer -- --nocapture`.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use tfo_common::{class::Class, parse::LinkLayer, segment::Family, verdict::{Mode, Verdict}};
use tfo_tests::{
    config::protected,
    kernel::Kernel,
    listener::Listener,
    netns::{Counts, IFACE, eventually, key, server_and_client},
    server::Server,
};
use tfo_userspace::{
    dataplane::LoadOptions,
    kernel::{sysctl::{KeySysctl, syncookies}, tcp_ext::TcpExt},
    lab::{
        client::{fast_open, ordinary},
        net::{Namespace, server, source},
    },
};

const PORT: u16 = 7413;
const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// Client's end of the veth pair.
const CLIENT: &str = "tfo-client";

/// Runs `test` with a server whose key is [`key`]`(1)`, and a client to which XDP can send: veth demands a program at the
/// other end.
fn with_client(test: impl FnOnce(Namespace) + Send) {
    server_and_client(|client| {
        KeySysctl::open().unwrap().write(key(1), None).unwrap();
        let _receiver = client
            .run(|| {
                let mut kernel = Kernel::with(&LoadOptions::new(LinkLayer::Ethernet, Mode::Observe), None);
                kernel.attach(CLIENT, LinkLayer::Ethernet);
                Ok(kernel)
            })
            .unwrap();
        test(client);
    });
}

/// Returns the number of SYNs of `class` that were answered.
fn answered(class: Class) -> u64 {
    Counts::of(IFACE).verdict(class, Verdict::Answer)
}

#[test]
fn clients_connect_through_answered_handshakes() {
    with_client(|client| {
        let _server = Server::echo(Listener::on(&format!("[::]:{PORT}")).fast_open(128).listen());
        let _tfo = protected(IFACE, PORT, Some("answer = { when = \"always\" }"));
        eventually("the listener is marked", || {
            client.run(|| ordinary(source(Family::Ipv4, 1), server(Family::Ipv4), DATA)).unwrap();
            answered(Class::PlainSyn) > 0
        });
        for family in [Family::Ipv4, Family::Ipv6] {
            let (before, plain) = (TcpExt::read().unwrap(), answered(Class::PlainSyn));
            let (from, to) = (source(family, 2), server(family));
            client.run(|| ordinary(from, to, DATA)).unwrap();
            assert_eq!(answered(Class::PlainSyn), plain + 1, "{family}");
            // The first asks for a cookie, and the second has it.
            client.run(|| fast_open(from, to, DATA)).unwrap();
            client.run(|| fast_open(from, to, DATA)).unwrap();
            let now = TcpExt::read().unwrap();
            assert_eq!(now.cookies_received - before.cookies_received, 2, "{family}");
            assert_eq!(now.passive - before.passive, 1, "{family}");
            assert_eq!(now.cookies_sent, 0, "the kernel itself sent none");
        }
        assert_eq!(answered(Class::CookieRequest), 2);
        assert_eq!(syncookies().unwrap(), 1);
    });
}
