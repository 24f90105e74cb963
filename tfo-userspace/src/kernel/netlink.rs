//! Netlink requests that rtnetlink lacks, in the calling thread's network namespace.

use std::{fmt::Debug, io};

use rtnetlink::{
    packet_core::{
        NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    sys::{Socket, SocketAddr},
};

/// Position of a message's length field in its header, in bytes.
const LENGTH: std::ops::Range<usize> = 0..4;
/// Alignment of messages, in bytes (NLMSG_ALIGNTO).
const ALIGNED: usize = 4;

/// Sends `question` as a dump request, and returns all answers.
pub fn dump<M>(protocol: isize, question: M) -> io::Result<Vec<M>>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let socket = send(protocol, question, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut answers = Vec::new();
    loop {
        for payload in receive(&socket)? {
            match payload {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

/// Sends `question`, and returns its one answer.
pub fn ask<M>(protocol: isize, question: M) -> io::Result<M>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let socket = send(protocol, question, NLM_F_REQUEST)?;
    match receive(&socket)?.pop() {
        Some(NetlinkPayload::InnerMessage(answer)) => Ok(answer),
        Some(NetlinkPayload::Error(error)) => Err(error.to_io()),
        _ => Err(io::Error::other("no answer over netlink")),
    }
}

fn send<M: NetlinkSerializable>(protocol: isize, question: M, flags: u16) -> io::Result<Socket> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(protocol)?;
    // Port 0 is the kernel.
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

/// Receives a datagram, and returns its messages. It ignores datagrams that are not from the kernel.
fn receive<M: NetlinkDeserializable + Debug>(socket: &Socket) -> io::Result<Vec<NetlinkPayload<M>>> {
    let (bytes, from) = socket.recv_from_full()?;
    let mut payloads = Vec::new();
    if from.port_number() != 0 {
        return Ok(payloads);
    }
    let mut rest = bytes.as_slice();
    while let Some(length) = rest.get(LENGTH) {
        let message = NetlinkMessage::deserialize(rest).map_err(io::Error::other)?;
        payloads.push(message.payload);
        let length = u32::from_ne_bytes(length.try_into().expect("four bytes")) as usize;
        rest = rest.get(length.next_multiple_of(ALIGNED)..).unwrap_or_default();
    }
    Ok(payloads)
}
