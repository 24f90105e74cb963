//! Comparison of our counters with the kernel's, which count the same packets further up the stack.

use comfy_table::CellAlignment::{Left, Right};
use tfo_common::{class::Class, counters::Counters, segment::Family};

use crate::{kernel::tcp_ext::TcpExt, view::table::table};

/// Comparison of both sides.
#[derive(Clone, Debug)]
pub struct Agreement {
    rows: Vec<Row>,
    overflow: u64,
    not_seen: Vec<String>,
}

/// Comparison for one counter of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Name of the counter in TcpExt.
    pub name: &'static str,
    /// Names of our counters that add up to it.
    pub counts: String,
    /// Our count.
    pub ours: u64,
    /// Kernel's count.
    pub kernel: u64,
}

impl Agreement {
    /// Compares both sides. All SYNs must have gone to listeners with Fast Open. `accepted` is the number of accepted
    /// connections, if known.
    ///
    /// The kernel's `tcp_try_fastopen` (net/ipv4/tcp_fastopen.c) decides which class moves which counter.
    pub fn new(ours: &Counters, accepted: Option<u64>, kernel: TcpExt) -> Self {
        use Class::{
            CookieBackup, CookieBadLength, CookieCurrent, CookieRequest, CookieRetired, CookieUnknown,
        };
        let row = |name, classes: &[Class], kernel| Row {
            name,
            counts: classes.iter().map(|class| class.name()).collect::<Vec<_>>().join(" + "),
            ours: classes.iter().map(|class| ours.class(*class).packets).sum(),
            kernel,
        };
        let mut rows = vec![
            row("TCPFastOpenCookieReqd", &[CookieRequest], kernel.cookie_reqd),
            row("TCPFastOpenPassive", &[CookieCurrent, CookieBackup], kernel.passive),
            row("TCPFastOpenPassiveAltKey", &[CookieBackup], kernel.passive_alt_key),
            row(
                "TCPFastOpenPassiveFail",
                &[CookieRetired, CookieUnknown, CookieBadLength],
                kernel.passive_fail,
            ),
        ];
        rows.extend(accepted.map(|ours| Row {
            name: "TCPFastOpenPassive",
            counts: "accepted".to_owned(),
            ours,
            kernel: kernel.passive,
        }));
        let mut not_seen: Vec<_> =
            (ours.malformed_total() == 0).then(|| "malformed".to_owned()).into_iter().collect();
        for family in Family::ALL {
            for class in Class::ALL {
                if ours.syn[family.index()][class.index()].iter().all(|tally| tally.packets == 0) {
                    not_seen.push(format!("{family} {class}"));
                }
            }
        }
        Self { rows, overflow: kernel.listen_overflow, not_seen }
    }

    /// Returns the comparison for each counter.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Whether both sides counted the same, and no Fast Open queue was full.
    pub fn holds(&self) -> bool {
        self.overflow == 0 && self.rows.iter().all(|row| row.ours == row.kernel)
    }

    /// Returns the families and classes of which no SYN was seen, and `malformed` if none was.
    pub fn not_seen(&self) -> &[String] {
        &self.not_seen
    }

    /// Formats both sides as a table, for people.
    pub fn text(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let verdict = if row.ours == row.kernel { "same" } else { "DIFFERENT" };
            [
                row.name.to_owned(),
                row.kernel.to_string(),
                row.ours.to_string(),
                verdict.to_owned(),
                row.counts.clone(),
            ]
        });
        let columns =
            [("kernel counter", Left), ("kernel", Right), ("tfo", Right), ("", Left), ("of tfo", Left)];
        let mut text = table(&columns, rows);
        if self.overflow > 0 {
            text += &format!("the listener's Fast Open queue was full {} times\n", self.overflow);
        }
        text
    }
}
