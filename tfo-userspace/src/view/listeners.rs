//! Listening sockets, as `tfo listeners` shows them.

use comfy_table::CellAlignment::{Left, Right};

use super::table::table;
use crate::kernel::listeners::{FastOpen, Listener, Listeners, Queues, bits};

/// Returns the listening sockets as text for a terminal.
pub fn text(listeners: &Listeners) -> String {
    let mut text =
        format!("net.ipv4.tcp_fastopen = {:#x}: {}\n", listeners.tcp_fastopen, bits(listeners.tcp_fastopen));
    if listeners.listeners.is_empty() {
        return text + "nobody listens\n";
    }
    let columns = [
        ("address", Left),
        ("fast open", Right),
        ("in use", Right),
        ("keys", Left),
        ("no cookie", Left),
        ("syn queue", Right),
        ("waiting", Right),
        ("limit", Right),
        ("process", Left),
        ("remarks", Left),
    ];
    text += &table(&columns, listeners.listeners.iter().map(row));
    if let Some(ways) = &listeners.no_cookie {
        text += &format!("{ways}\n");
    }
    if let Some(why) = &listeners.queues_unknown {
        text += &format!("SYN queues, and Fast Open connections in use, are unknown: {why}\n");
    }
    text
}

fn row(listener: &Listener) -> [String; 10] {
    let (queue, keys, no_cookie) = match &listener.fast_open {
        None => ("?".to_owned(), "?".to_owned(), "?"),
        Some(FastOpen { queue: 0, .. }) => ("off".to_owned(), String::new(), ""),
        Some(FastOpen { queue, has_own_keys, own_keys, no_cookie }) => {
            let keys = match (has_own_keys, own_keys.as_slice()) {
                (false, _) => "sysctl".to_owned(),
                (true, []) => "its own".to_owned(),
                (true, own_keys) => own_keys.join(" "),
            };
            (queue.to_string(), keys, if *no_cookie { "yes" } else { "" })
        }
    };
    let number = |of: fn(&Queues) -> u32| match &listener.queues {
        Some(queues) => of(queues).to_string(),
        None => "?".to_owned(),
    };
    let process = match listener.processes.as_slice() {
        [] => "?".to_owned(),
        [only] => format!("{} ({})", only.name, only.pid),
        [first, others @ ..] => format!("{} ({}, +{})", first.name, first.pid, others.len()),
    };
    let remarks: Vec<_> = [&listener.unknown, &listener.warning].into_iter().flatten().cloned().collect();
    [
        listener.address.to_string(),
        queue,
        number(|queues| queues.fast_open),
        keys,
        no_cookie.to_owned(),
        number(|queues| queues.syn),
        listener.backlog.waiting.to_string(),
        listener.backlog.limit.to_string(),
        process,
        remarks.join("; "),
    ]
}
