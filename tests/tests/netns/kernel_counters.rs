//! Scripted traffic, after which tfo's counters equal the kernel's exactly.

use tfo_common::{class::Class, cookie, segment::Family};
use tfo_tests::netns::{Counts, IFACE, Running, eventually, key, server_and_client, set_keys};
use tfo_userspace::{
    kernel::tcp_ext::TcpExt,
    lab::{
        client::{Syn, fast_open, ordinary},
        net::{SERVERS, server, source},
        server::Listeners,
    },
    model::keys::addresses,
};

const DATA: &[u8] = b"GET / HTTP/1.1\r\n\r\n";

/// Real clients through two key changes, over both families. The class of every connection is known.
#[test]
fn real_clients_before_and_after_key_changes() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);

        // The kernel remembers the cookies of some five sources for each destination (TCP_METRICS_RECLAIM_DEPTH).
        const CLIENTS: u16 = 4;
        let connect_all = |number: u16| {
            client
                .run(|| {
                    for family in Family::ALL {
                        for n in 0..number {
                            fast_open(source(*family, n), server(*family), DATA)?;
                        }
                    }
                    Ok(())
                })
                .unwrap();
        };
        let expect = |expected: &[(Class, u64)]| {
            let counts = Counts::of(IFACE);
            for family in Family::ALL {
                for class in Class::ALL {
                    let packets =
                        expected.iter().find(|(c, _)| c == class).map_or(0, |(_, packets)| *packets);
                    assert_eq!(counts.syn(*family, *class).packets, packets, "{family} {class}");
                }
            }
            counts.assert_agree(before);
        };

        let n = u64::from(CLIENTS);
        connect_all(CLIENTS); // each client requests a cookie
        expect(&[(Class::CookieRequest, n)]);
        connect_all(CLIENTS); // each client uses its cookie
        expect(&[(Class::CookieRequest, n), (Class::CookieCurrent, n)]);

        set_keys(IFACE, key(2), Some(key(1)));
        connect_all(CLIENTS / 2); // half use it under the backup key, and get a fresh cookie
        connect_all(CLIENTS / 2);
        expect(&[(Class::CookieRequest, n), (Class::CookieCurrent, n + n / 2), (Class::CookieBackup, n / 2)]);

        set_keys(IFACE, key(3), None);
        connect_all(CLIENTS); // all cookies are of keys that the kernel no longer holds
        connect_all(CLIENTS); // the clients have fresh cookies
        expect(&[
            (Class::CookieRequest, n),
            (Class::CookieCurrent, 2 * n + n / 2),
            (Class::CookieBackup, n / 2),
            (Class::CookieRetired, n),
        ]);

        // A cookie comes with the whole request as data, a request for a cookie comes without data.
        for family in Family::ALL {
            let counts = Counts::of(IFACE);
            assert_eq!(counts.syn(*family, Class::CookieRequest).with_data, 0);
            let current = counts.syn(*family, Class::CookieCurrent);
            assert_eq!(current.with_data, current.packets);
            assert_eq!(current.data_bytes, current.packets * DATA.len() as u64);
        }
    });
}

/// SYNs that no honest kernel sends, one by one: the kernel's counters change as the class predicts.
#[test]
fn crafted_syns_move_the_kernels_counters_as_their_class_says() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        set_keys(IFACE, key(3), Some(key(2)));

        let mut port = 2000;
        for family in Family::ALL {
            let (client_address, server) = (source(*family, 9), server(*family));
            let addresses = addresses(client_address, server.ip()).unwrap();
            let [retired, backup, current, unknown] =
                [1, 2, 3, 4].map(|n| cookie::make(&key(n), &addresses).to_le_bytes());
            let long = [7; 18];
            let cases: [(Class, &dyn Fn(Syn) -> Syn); 22] = [
                (Class::PlainSyn, &|syn| syn),
                (Class::PlainSyn, &|syn| syn.data(DATA)),
                (Class::CookieRequest, &|syn| syn.fast_open(&[])),
                (Class::CookieRequest, &|syn| syn.fast_open(&[]).data(DATA)),
                (Class::CookieRequest, &|syn| syn.experimental(&[])),
                (Class::CookieCurrent, &|syn| syn.fast_open(&current)),
                (Class::CookieCurrent, &|syn| syn.fast_open(&current).data(DATA)),
                (Class::CookieCurrent, &|syn| syn.experimental(&current).data(DATA)),
                (Class::CookieBackup, &|syn| syn.fast_open(&backup).data(DATA)),
                (Class::CookieBackup, &|syn| syn.experimental(&backup)),
                (Class::CookieRetired, &|syn| syn.fast_open(&retired).data(DATA)),
                (Class::CookieUnknown, &|syn| syn.fast_open(&unknown).data(DATA)),
                (Class::CookieUnknown, &|syn| syn.experimental(&unknown)),
                (Class::CookieBadLength, &|syn| syn.fast_open(&current[..4]).data(DATA)),
                (Class::CookieBadLength, &|syn| syn.fast_open(&long[..16])),
                (Class::OptionIgnored, &|syn| syn.fast_open(&current[..7]).data(DATA)),
                (Class::OptionIgnored, &|syn| syn.fast_open(&current[..2])),
                (Class::OptionIgnored, &|syn| syn.fast_open(&long)),
                // The last option counts. An odd one is ignored. One of a bad length discards an earlier one.
                (Class::CookieCurrent, &|syn| syn.fast_open(&unknown).fast_open(&current)),
                (Class::CookieUnknown, &|syn| syn.fast_open(&current).fast_open(&unknown)),
                (Class::CookieCurrent, &|syn| syn.fast_open(&current).fast_open(&[1; 3])),
                (Class::OptionIgnored, &|syn| syn.fast_open(&current).fast_open(&[1; 2])),
            ];
            for (class, make) in &cases {
                port += 1;
                let seen = Counts::of(IFACE);
                let syn = make(Syn::new(port, server.port(), u32::from(port) << 8));
                client.run(|| syn.send(client_address, server.ip())).unwrap();
                eventually("the SYN is counted", || Counts::of(IFACE).total() == seen.total() + 1);
                let now = Counts::of(IFACE);
                let counted: Vec<_> =
                    Class::ALL.iter().filter(|class| now.class(**class) != seen.class(**class)).collect();
                assert_eq!(counted, [class], "{family} {syn:?}");
                // The stack has processed a SYN before the next one comes, so the kernel has counted it, too.
                eventually("the kernel agrees", || TcpExt::read().unwrap() - before == now.as_kernel());
            }
        }
    });
}

/// A fragmented SYN: the kernel reassembles and serves it. tfo counts the first fragment as a SYN, the rest as
/// fragments.
#[test]
fn a_fragmented_syn_is_served_and_counted_once() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        set_keys(IFACE, key(1), None);
        for family in Family::ALL {
            let (client_address, server) = (source(*family, 1), server(*family));
            let addresses = addresses(client_address, server.ip()).unwrap();
            let cookie = cookie::make(&key(1), &addresses).to_le_bytes();
            let syn = Syn::new(4000, server.port(), 1).fast_open(&cookie).data(&[b'x'; 2000]);
            client.run(|| syn.send(client_address, server.ip())).unwrap();
            eventually("the SYN is counted", || {
                Counts::of(IFACE).syn(*family, Class::CookieCurrent).packets == 1
            });
        }
        eventually("the kernel has both", || TcpExt::read().unwrap().passive - before.passive == 2);
        let counts = Counts::of(IFACE);
        counts.assert_agree(before);
        assert_eq!(counts.reason("unsupported", "later_fragment"), 2);
        assert_eq!(counts.total(), 2);
    });
}

/// Ordinary connections are counted as plain SYNs. No counter of Fast Open changes.
#[test]
fn ordinary_connections_leave_no_trace_of_fast_open() {
    server_and_client(|client| {
        let _listeners = Listeners::start(&SERVERS).unwrap();
        let before = TcpExt::read().unwrap();
        let _tfo = Running::start(&["-i", IFACE]);
        client
            .run(|| {
                for family in Family::ALL {
                    for n in 0..50 {
                        ordinary(source(*family, n), server(*family), DATA)?;
                    }
                }
                Ok(())
            })
            .unwrap();
        let counts = Counts::of(IFACE);
        assert_eq!(counts.class(Class::PlainSyn), 100);
        assert_eq!(counts.total(), 100);
        assert_eq!(TcpExt::read().unwrap() - before, TcpExt::default());
    });
}
