//! Listening sockets, as `tfo listeners` shows them.

use comfy_table::CellAlignment::{Left, Right};

use super::table::table;
use crate::kernel::listeners::{FastOpen, Listener, Listeners, bits};

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
        ("keys", Left),
        ("waiting", Right),
        ("limit", Right),
        ("process", Left),
        ("remarks", Left),
    ];
    text += &table(&columns, listeners.listeners.iter().map(row));
    text
}

fn row(listener: &Listener) -> [String; 7] {
    let (queue, keys) = match &listener.fast_open {
        None => ("?".to_owned(), "?".to_owned()),
        Some(FastOpen { queue: 0, .. }) => ("off".to_owned(), String::new()),
        Some(FastOpen { queue, own_keys, .. }) => {
            let keys = if own_keys.is_empty() { "sysctl".to_owned() } else { own_keys.join(" ") };
            (queue.to_string(), keys)
        }
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
        keys,
        listener.backlog.waiting.to_string(),
        listener.backlog.limit.to_string(),
        process,
        remarks.join("; "),
    ]
}
