//! Case table against the kernel: a real interface with the program receives every frame, with a real Fast Open
//! listener behind it. The program must count as the table says, and the kernel as the class predicts.

#![expect(clippy::unwrap_used, reason = "tests panic where something is not as it has to be")]

use std::net::{IpAddr, SocketAddr};

use etherparse::{Ipv6ExtensionSlice, NetSlice, SlicedPacket, TransportSlice};
use tfo_common::{
    class::Class,
    counters::Counters,
    keyring::NEXT,
    parse::{LinkLayer, Unsupported},
};
use tfo_tests::{
    cases::{Case, Expected, Keys, SERVER_V4, SERVER_V6, all, rows},
    keys,
    netns::{BPFFS, Running, ip, sandbox, set_keys, status, xdp_on},
    tap::Tap,
};
use tfo_userspace::{
    dataplane::{Pinned, pins::Bpffs},
    kernel::tcp_ext::TcpExt,
    lab::server::listen,
};

#[test]
fn ethernet_frames() {
    check(LinkLayer::Ethernet, "native");
}

#[test]
fn ip_frames() {
    check(LinkLayer::Ip, "generic");
}

#[test]
fn ethernet_frames_at_tcx() {
    check(LinkLayer::Ethernet, "tcx");
}

#[test]
fn ip_frames_at_tcx() {
    check(LinkLayer::Ip, "tcx");
}

fn check(link: LinkLayer, attach: &str) {
    sandbox(|| {
        const NAME: &str = "nic0";
        let mut nic = Tap::new(NAME, link);
        ip("link set lo up");
        ip(&format!("addr add {SERVER_V4}/24 dev {NAME}"));
        ip(&format!("addr add {SERVER_V6}/64 dev {NAME} nodad"));
        // Answers need a route to the clients' networks.
        ip(&format!("route add 192.0.2.0/24 dev {NAME}"));
        ip(&format!("route add default dev {NAME}"));
        ip(&format!("-6 route add default dev {NAME}"));
        tfo_userspace::kernel::sysctl::write_mode(3).unwrap();
        let is_tcx = attach == "tcx";
        let is_meant =
            |case: &Case| case.link == link && can_be_had(case) && !(is_tcx && differs_at_tcx(case));
        let cases: Vec<Case> = all().into_iter().filter(is_meant).collect();
        let mut ports: Vec<u16> =
            cases.iter().filter_map(|case| locate(case).map(|tcp| tcp.server_port)).collect();
        ports.sort_unstable();
        ports.dedup();
        let servers = [IpAddr::V4(SERVER_V4), IpAddr::V6(SERVER_V6)];
        let _listeners: Vec<_> = servers
            .into_iter()
            .flat_map(|server| ports.iter().map(move |port| SocketAddr::new(server, *port)))
            .map(|address| listen(address).unwrap())
            .collect();

        let _tfo = Running::start(&["-i", NAME, "--attach", if is_tcx { "tcx" } else { "auto" }]);
        assert_eq!(status(NAME)["attach"], attach);
        assert_eq!(xdp_on(NAME).is_none(), is_tcx);
        for retired in keys::RETIRED.iter().rev() {
            set_keys(NAME, retired.key(), None);
        }
        set_keys(NAME, keys::CURRENT.key(), Some(keys::BACKUP.key()));
        let pinned = Pinned::open(&Bpffs::new(BPFFS.as_ref()).pins(NAME)).unwrap();

        let mut refused = 0;
        let mut predicted = 0;
        let mut failures = Vec::new();
        for (number, case) in cases.iter().enumerate() {
            let mut frame = case.frame.clone();
            let tcp = locate(case);
            if let Some(tcp) = &tcp {
                tcp.set_source_port(&mut frame, 1024 + number as u16);
            }
            let (ours, kernels) = (pinned.counters().unwrap(), TcpExt::read().unwrap());
            if frame.is_empty() || nic.receive(&frame).is_err() {
                // tun accepts only frames that begin like IP, tap only those as long as an Ethernet header.
                refused += 1;
                continue;
            }
            let mut expected = ours;
            expected.add(&case.expected.counters());
            let now = pinned.counters().unwrap();
            if without_tracks(now) != without_tracks(expected) {
                failures.push(format!(
                    "{}: tfo counted {:?}, not {:?}",
                    case.name,
                    rows(&now),
                    rows(&expected)
                ));
            }
            let kernel = TcpExt::read().unwrap() - kernels;
            if let Some(prediction) = predict(case, tcp.as_ref()) {
                predicted += 1;
                if kernel != prediction {
                    failures
                        .push(format!("{}: the kernel counted {kernel:?}, not {prediction:?}", case.name));
                }
            }
        }
        println!("{} frames, {predicted} predictions, {refused} refused by the interface", cases.len());
        assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
        assert!(predicted > cases.len() / 2 && refused < cases.len() / 4);
    });
}

/// Returns whether a program at tcx does not see the frame as it came: the kernel takes the outermost VLAN tag out first
/// (`skb_vlan_untag`), and drops a frame that ends within that tag.
fn differs_at_tcx(case: &Case) -> bool {
    let tagged = matches!(case.frame.get(12..14), Some([0x81, 0x00] | [0x88, 0xa8]));
    case.link == LinkLayer::Ethernet && tagged && (case.frame.len() < 20 || case.name == "link: 366 tags")
}

/// Returns whether the kernel can have the case's keys. Only a schedule knows the next key.
fn can_be_had(case: &Case) -> bool {
    case.keys == Keys::Known && case.expected.counters().hits[NEXT] == 0
}

/// Returns the counters with the hits of all keys in one sum, since the controller chooses the counter of each key.
fn without_tracks(counters: Counters) -> Counters {
    let mut sum = counters;
    sum.hits = Default::default();
    sum.hits[0] = counters.hits.iter().sum();
    sum
}

/// Returns the expected counts of the kernel. `None` if the frame does not reach a listener for reasons beyond the
/// parser, or if tfo itself does not know.
fn predict(case: &Case, tcp: Option<&Tcp>) -> Option<TcpExt> {
    let mut prediction = TcpExt::default();
    match case.expected {
        // The kernel may follow more headers than tfo.
        Expected::Unsupported(Unsupported::ExtensionChain) => return None,
        Expected::NotSyn | Expected::Malformed(_) | Expected::Unsupported(_) => {}
        Expected::Syn { class, .. } => {
            // The listener has no key, and drops a SYN with a signature, or with a broken one, if its kernel knows
            // this kind of signature (tcp_inbound_hash).
            let tcp = tcp.filter(|_| !case.name.contains("signed: "))?;
            if !tcp.reaches_a_listener {
                return None;
            }
            match class {
                _ if !tcp.checksum_is_right => {}
                //= RFC 7413 section 4.1.1
                //# Options with invalid Length values or without the SYN flag set MUST be
                //# ignored.
                Class::PlainSyn | Class::OptionIgnored => {}
                Class::CookieRequest => prediction.cookie_reqd = 1,
                Class::CookieCurrent => prediction.passive = 1,
                Class::CookieBackup => (prediction.passive, prediction.passive_alt_key) = (1, 1),
                Class::CookieRetired | Class::CookieUnknown | Class::CookieBadLength => {
                    prediction.passive_fail = 1
                }
            }
        }
    }
    Some(prediction)
}

/// TCP header in a frame, as etherparse finds it.
struct Tcp {
    offset: usize,
    server_port: u16,
    /// False for a frame with a tag for an absent VLAN, a fragment, a packet of an absent security association, more
    /// options than the kernel accepts (`max_hbh_opts_number`), or another destination host.
    reaches_a_listener: bool,
    /// Whether the checksum is right. The parser leaves a wrong one to the kernel, which drops the packet.
    checksum_is_right: bool,
}

fn locate(case: &Case) -> Option<Tcp> {
    let frame = &case.frame;
    let packet = match case.link {
        LinkLayer::Ethernet => SlicedPacket::from_ethernet(frame),
        LinkLayer::Ip => SlicedPacket::from_ip(frame),
    }
    .ok()?;
    let TransportSlice::Tcp(tcp) = packet.transport.as_ref()? else { return None };
    let offset = tcp.slice().as_ptr() as usize - frame.as_ptr() as usize;
    let (source, server, extensions) = match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            (
                IpAddr::V4(header.source_addr()),
                IpAddr::V4(header.destination_addr()),
                ip.extensions().auth.is_some(),
            )
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let stops = |extension| match extension {
                Ipv6ExtensionSlice::Authentication(_) => true,
                Ipv6ExtensionSlice::HopByHop(options) | Ipv6ExtensionSlice::DestinationOptions(options) => {
                    options.slice().len() > 64
                }
                _ => false,
            };
            let stops = ip.extensions().clone().into_iter().any(stops);
            (IpAddr::V6(header.source_addr()), IpAddr::V6(header.destination_addr()), stops)
        }
        _ => return None,
    };
    let here = server == IpAddr::V4(SERVER_V4) || server == IpAddr::V6(SERVER_V6);
    let fragment = packet.is_ip_payload_fragmented();
    Some(Tcp {
        offset,
        server_port: tcp.destination_port(),
        reaches_a_listener: here && packet.vlan_ids().is_empty() && !fragment && !extensions,
        checksum_is_right: sum(source, server, tcp.slice()) == 0xffff,
    })
}

/// Returns the one's complement sum of a segment and its pseudo header: all ones if the checksum is right (RFC 1071).
fn sum(source: IpAddr, destination: IpAddr, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((segment.len() as u32).to_be_bytes());
    bytes.extend([0, 0, 0, 6]);
    bytes.extend(segment);
    fold(
        bytes
            .chunks(2)
            .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
            .sum(),
    )
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

impl Tcp {
    /// Changes the source port, so that no two cases share a connection. The checksum stays as right or as wrong as it
    /// was (RFC 1624, equation 3).
    fn set_source_port(&self, frame: &mut [u8], port: u16) {
        let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (source, checksum) = (self.offset, self.offset + 16);
        let sum = fold(u32::from(!word(frame, checksum)) + u32::from(!word(frame, source)) + u32::from(port));
        frame[source..source + 2].copy_from_slice(&port.to_be_bytes());
        frame[checksum..checksum + 2].copy_from_slice(&(!sum).to_be_bytes());
    }
}
