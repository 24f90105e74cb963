//! The page as HTML, with style and plots inline, so that a browser loads nothing else.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use plotters::style::RGBColor;
use tfo_common::{class::Class, verdict::Mode};

use super::{
    Section,
    plot::{Line, svg},
};
use crate::{
    fleet::feed::State,
    kernel::tcp_ext::TcpExt,
    view::{
        counters::{GuardRow, ReasonRow, Report, ServiceReport},
        history::{Outcomes, Sample},
        key_listing::{Generation, Listing},
        rtt_saved::seconds,
    },
};

/// Content Security Policy: browsers load nothing for this page, whatever text gets into it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
const GREEN: RGBColor = RGBColor(0x22, 0xa0, 0x5a);
const TEAL: RGBColor = RGBColor(0x14, 0xa8, 0xa8);
const BLUE: RGBColor = RGBColor(0x3b, 0x82, 0xf6);
const AMBER: RGBColor = RGBColor(0xe0, 0x8a, 0x00);
const RED: RGBColor = RGBColor(0xe5, 0x48, 0x4d);
const PURPLE: RGBColor = RGBColor(0xb0, 0x5c, 0xe0);
const BROWN: RGBColor = RGBColor(0xa0, 0x76, 0x4a);
const GREY: RGBColor = RGBColor(0x86, 0x8e, 0x99);

/// Writes the page on `sections`, with `now` as its date.
pub fn page(sections: &[Section], now: Timestamp) -> Result<String> {
    let sections = sections.iter().map(section).collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "TCP Fast Open" }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                h1 { "TCP Fast Open on this host" }
                p.quiet { "Written by tfo " (env!("CARGO_PKG_VERSION")) " at " (format!("{now:.0}")) "." }
                @for section in &sections { (section) }
            }
        }
    };
    Ok(page.into_string())
}

fn section(section: &Section) -> Result<Markup> {
    let Section { report, keys, fleet, hour } = section;
    let classes: Vec<_> = Class::ALL
        .iter()
        .map(|class| line(section, class.name(), color(*class), |sample| Some(sample.totals.class(*class))))
        .filter(|line| line.runs.iter().flatten().any(|(_, rate)| *rate > 0.0))
        .collect();
    let accepted = [
        line(section, "accepted", GREEN, |sample| accepted_and_refused(sample).map(|[accepted, _]| accepted)),
        line(section, "refused", RED, |sample| accepted_and_refused(sample).map(|[_, refused]| refused)),
    ];
    let mut saved = [line(section, "milliseconds saved", TEAL, |sample| {
        sample.totals.outcomes.map(|outcomes| outcomes.saved_us)
    })];
    saved.iter_mut().flat_map(|line| &mut line.runs).flatten().for_each(|(_, rate)| *rate /= 1000.0);
    let kernel =
        KERNEL_COUNTERS.map(|(name, color, of)| line(section, name, color, |s| s.kernel.as_ref().map(of)));
    let span = hour.span().as_secs_f64();
    let plot = |title, lines: &[Line], if_empty| plot(title, lines, if_empty, span);
    let latest = hour.latest();
    Ok(html! {
        h2 { (report.interface) }
        @for sentence in summary(section) { p.summary { (sentence) } }
        @if let Some(services) = report.answered() {
            p.summary { "SYNs to " (services) " are answered by the program now: a flood is under way, or they always are." }
        }
        p.quiet { "Mode " (report.mode) ", attached in " (report.attach) " mode, counting since "
            (format!("{:.0}", report.since)) "." }
        div.grid {
            (plot("SYNs a second, by class", &classes, "No SYN came.")?)
            (plot(if report.outcomes { "Good cookies accepted and refused, a second" } else { "Cookies accepted and refused, a second" }, &accepted, "Not available.")?)
            (plot("Waiting saved, milliseconds a second", &saved,
                "Not available: nothing on this host measures round trips.")?)
            (plot("The kernel's own counters, a second", &kernel, "The kernel's counters could not be read.")?)
        }
        div.grid {
            div.card { h3 { "SYNs since counting began" } (classes_table(report)) }
            div.card { h3 { "Keys" } (keys_table(keys)) (fleet_line(fleet.as_ref())) }
            @if report.services.len() > 1 { div.card { h3 { "Services" } (services_table(report)) } }
            @if report.services.iter().any(|service| !service.guards.is_empty()) {
                div.card { h3 { "Protections" } (guards_table(report)) }
            }
            div.card {
                h3 { "Without a class" }
                (reasons("malformed", &report.malformed)) (reasons("unsupported", &report.unsupported))
            }
            @if let Some(kernel) = latest.and_then(|sample| sample.kernel) {
                div.card { h3 { "The kernel's totals" } (table(&["counter", "packets"],
                    KERNEL_COUNTERS.map(|(name, _, of)| vec![name.to_owned(), number(of(&kernel))]).into())) }
            }
        }
    })
}

/// Draws `lines` over the last `span` seconds, with a title and a legend. Without lines, it says `if_empty`.
fn plot(title: &str, lines: &[Line], if_empty: &str, span: f64) -> Result<Markup> {
    let is_empty = lines.iter().all(|line| line.runs.is_empty());
    let drawn = if is_empty { String::new() } else { svg(lines, span)? };
    Ok(html! {
        figure.card {
            figcaption { h3 { (title) } }
            @if is_empty { p.quiet { (if_empty) } }
            @else {
                (PreEscaped(drawn))
                ul.legend { @for line in lines { li { i style=(background(line.color)) {} (line.name) } } }
            }
        }
    })
}

/// Name of a kernel counter, its colour, and the function that reads it.
type KernelCounter = (&'static str, RGBColor, fn(&TcpExt) -> u64);

/// Kernel counters that are plotted. They cover the network namespace, not only the interface.
const KERNEL_COUNTERS: [KernelCounter; 5] = [
    ("TCPFastOpenCookieReqd", BLUE, |kernel| kernel.cookie_reqd),
    ("TCPFastOpenPassive", GREEN, |kernel| kernel.passive),
    ("TCPFastOpenPassiveAltKey", TEAL, |kernel| kernel.passive_alt_key),
    ("TCPFastOpenPassiveFail", RED, |kernel| kernel.passive_fail),
    ("TCPFastOpenListenOverflow", AMBER, |kernel| kernel.listen_overflow),
];

fn color(class: Class) -> RGBColor {
    match class {
        Class::PlainSyn => GREY,
        Class::OptionIgnored => BROWN,
        Class::CookieRequest => BLUE,
        Class::CookieCurrent => GREEN,
        Class::CookieBackup => TEAL,
        Class::CookieRetired => AMBER,
        Class::CookieUnknown => RED,
        Class::CookieBadLength => PURPLE,
    }
}

fn background(RGBColor(red, green, blue): RGBColor) -> String {
    format!("background:#{red:02x}{green:02x}{blue:02x}")
}

fn line(section: &Section, name: &'static str, color: RGBColor, of: impl Fn(&Sample) -> Option<u64>) -> Line {
    Line { name, color, runs: section.hour.runs(of) }
}

/// Returns the numbers of accepted and refused cookies, from outcomes or else from the kernel's counters.
fn accepted_and_refused(sample: &Sample) -> Option<[u64; 2]> {
    let outcomes = sample.totals.outcomes.map(|Outcomes { accepted, refused, .. }| [accepted, refused]);
    outcomes.or_else(|| sample.kernel.map(|kernel| [kernel.passive, kernel.passive_fail]))
}

/// Describes in sentences what Fast Open did in the last hour.
fn summary(Section { report, hour, .. }: &Section) -> Vec<String> {
    let class = |class: Class| hour.gain(|sample| Some(sample.totals.class(class)));
    let syns = hour.gain(|sample| Some(sample.totals.all()));
    let span = human(hour.span());
    if syns == 0 {
        return vec![format!("No SYN came in the last {span}.")];
    }
    let with_option = syns - class(Class::PlainSyn).min(syns);
    let mut sentences = vec![format!(
        "In the last {span}, {} came, {} of them with Fast Open.",
        count(syns, "SYN"),
        percent(with_option, syns)
    )];
    let both = hour.latest().and_then(accepted_and_refused).map(|_| {
        [0, 1].map(|which| hour.gain(|sample| accepted_and_refused(sample).map(|both| both[which])))
    });
    if let Some([accepted, refused]) = both.filter(|both| *both != [0, 0]) {
        let saved = hour.gain(|sample| sample.totals.outcomes.map(|outcomes| outcomes.saved_us));
        let saved = match saved {
            0 => "a round trip each".to_owned(),
            us => format!("{} of waiting in all", seconds(us as f64 / 1e6)),
        };
        sentences.push(format!("Fast Open opened {}, which saved {saved}.", count(accepted, "connection")));
        let good = if report.outcomes { "good " } else { "" };
        sentences.push(format!("The kernel refused {}.", count(refused, &format!("{good}cookie"))));
    }
    let rewritten = hour.gain(|sample| Some(sample.totals.rewritten));
    let lost = hour.gain(|sample| Some(sample.totals.outdated));
    if rewritten > 0 {
        sentences.push(format!(
            "{} that the kernel does not know by itself were translated for it.",
            count(rewritten, "cookie")
        ));
    }
    if lost > 0 {
        let remedy =
            if report.mode == Mode::Observe.name() { ": --mode accelerate would save them" } else { "" };
        sentences.push(format!("{} lost to rotations of keys{remedy}.", count(lost, "round trip")));
    }
    let guarded = hour.gain(|sample| Some(sample.totals.guarded));
    if guarded > 0 {
        sentences.push(format!("Protections acted on {}.", count(guarded, "SYN")));
    }
    sentences
}

fn classes_table(report: &Report) -> Markup {
    let all: u64 = report.syn.iter().map(|row| row.packets).sum();
    let row = |class: &Class| {
        let rows = || report.syn.iter().filter(|row| row.class == class.name());
        let packets = rows().map(|row| row.packets).sum();
        let with_data = rows().map(|row| row.with_data).sum();
        vec![class.name().to_owned(), number(packets), percent(packets, all), number(with_data)]
    };
    table(&["class", "SYNs", "share", "data"], Class::ALL.iter().map(row).collect())
}

fn services_table(report: &Report) -> Markup {
    let row = |service: &ServiceReport| {
        let syns = service.syn.iter().map(|row| row.packets).sum();
        let known = |number_of| if report.outcomes { number(number_of) } else { "–".to_owned() };
        vec![service.name.clone(), number(syns), known(service.accepted), known(service.refused)]
    };
    table(&["service", "SYNs", "accepted", "refused"], report.services.iter().map(row).collect())
}

fn guards_table(report: &Report) -> Markup {
    let rows = report.services.iter().flat_map(|service| {
        service.guards.iter().map(|GuardRow { guard, acted, would }| {
            vec![(*guard).to_owned(), service.name.clone(), number(*acted), number(*would)]
        })
    });
    table(&["protection", "service", "acted", "would have"], rows.collect())
}

fn fleet_line(fleet: Option<&State>) -> Markup {
    let Some(state) = fleet else { return html! {} };
    let in_step = if state.is_in_step() { "in step" } else { "OUT OF STEP" };
    html! { p.quiet { "Fleet: " (in_step) ", " (state.text()) "." } }
}

fn keys_table(keys: &Listing) -> Markup {
    if keys.keys.is_empty() {
        return html! { p.quiet { "The kernel has no key yet, because there has been no listener with Fast Open." } };
    }
    let row = |key: &Generation| {
        let share = format!("{:.1}%", key.share * 100.0);
        vec![key.role.to_owned(), human(Duration::from_secs(key.age)), number(key.hits), share]
    };
    let in_step = match keys.attestation.in_step() {
        Some(true) => ", in step with the kernel",
        Some(false) => ", OUT OF STEP with the kernel",
        None => "",
    };
    html! {
        p.quiet {
            "From " (keys.source) (in_step) "."
            @if let Some(seconds) = keys.next_secret_in() {
                " A new secret is in force in " (human(Duration::from_secs(seconds))) "."
            }
        }
        (table(&["role", "age", "hits", "share"], keys.keys.iter().map(row).collect()))
    }
}

fn reasons(what: &str, rows: &[ReasonRow]) -> Markup {
    if rows.is_empty() {
        return html! { p.quiet { "No " (what) " frame came." } };
    }
    table(
        &[what, "packets"],
        rows.iter().map(|row| vec![row.reason.to_owned(), number(row.packets)]).collect(),
    )
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> Markup {
    html! {
        table {
            thead { tr { @for name in head { th scope="col" { (name) } } } }
            tbody { @for row in &rows { tr { @for cell in row { td { (cell) } } } } }
        }
    }
}

fn count(number_of: u64, what: &str) -> String {
    format!("{} {what}{}", number(number_of), if number_of == 1 { "" } else { "s" })
}

fn percent(part: u64, all: u64) -> String {
    if all == 0 { "–".to_owned() } else { format!("{:.1}%", part as f64 / all as f64 * 100.0) }
}

/// Writes a number with a narrow space between thousands.
fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Writes a time in its largest unit.
fn human(time: Duration) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "days"), (3600, "hours"), (60, "minutes")];
    let seconds = time.as_secs();
    match UNITS.iter().find(|(unit, _)| seconds >= 2 * *unit || (seconds == 3600 && *unit == 60)) {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{seconds} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(number),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        let times = [5, 119, 120, 3600, 7200, 200_000].map(|seconds| human(Duration::from_secs(seconds)));
        assert_eq!(times, ["5 seconds", "119 seconds", "2 minutes", "60 minutes", "2 hours", "2 days"]);
        assert_eq!((percent(1, 3), percent(0, 0)), ("33.3%".to_owned(), "–".to_owned()));
    }

    #[test]
    fn names_are_escaped() {
        let rows = vec![vec!["<script>".to_owned()]];
        assert!(table(&["a & b"], rows).into_string().contains("<th scope=\"col\">a &amp; b</th>"));
        assert!(!POLICY.contains('"'));
    }
}
