//! Drawing of the screen, a function of the model and the size of the terminal.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{
        Block, BorderType, Cell, Clear, List, ListItem, ListState, Paragraph, RenderDirection, Row,
        Sparkline, Table, TableState, Wrap,
    },
};
use tfo_common::{class::Class, segment::Family};

use super::{
    input::HELP,
    model::{Look, Model, Panel, Rates},
};
use crate::view::{client::Counts, history::Outcomes, rtt_saved::seconds};

/// Minimum width and height of the terminal, in cells.
const MIN_SIZE: (u16, u16) = (72, 19);
/// Rows of the upper panels: a head, classes, families, and a border.
const UPPER_ROWS: u16 = (1 + Class::COUNT + Family::COUNT + 2) as u16;
/// Columns left of a sparkline.
const BEFORE_SPARKLINE: u16 = 34;

/// Draws the screen.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let area = frame.area();
    if area.width < MIN_SIZE.0 || area.height < MIN_SIZE.1 {
        let text = format!(
            "This terminal is too small: {} × {}.\ntfo top needs {} × {}.\nq quits.",
            area.width, area.height, MIN_SIZE.0, MIN_SIZE.1
        );
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
    }
    let rest = area.height - UPPER_ROWS - 2;
    // A terminal of 23 or 24 rows has room for the events. A lower one shows none.
    let events = if rest >= 8 { (rest / 2).min(rest - 4) } else { 0 };
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(UPPER_ROWS),
        Constraint::Fill(1),
        Constraint::Length(events),
        Constraint::Length(1),
    ]);
    let [head, upper, middle, lower, foot] = rows.areas(area);
    let columns = |left| Layout::horizontal([Constraint::Percentage(left), Constraint::Fill(1)]);
    let [classes, outcomes] = columns(60).areas(upper);
    let [keys, prefixes] = columns(50).areas(middle);
    draw_head(frame, model, head);
    draw_classes(frame, model, classes);
    draw_outcomes(frame, model, outcomes);
    draw_keys(frame, model, keys);
    if model.destinations {
        draw_destinations(frame, model, prefixes);
    } else {
        draw_prefixes(frame, model, prefixes);
    }
    if events > 0 {
        draw_events(frame, model, lower);
    }
    let hint = "q quit  ? help  Tab panel  i interface  s service  d from here  p pause";
    frame.render_widget(Line::from(hint).dim(), foot);
    if model.help {
        draw_help(frame, area);
    }
}

fn draw_head(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let mut spans = vec![Span::from(format!("tfo  {}", model.interface)).bold()];
    match (&model.error, &model.look) {
        (Some(error), _) => spans.push(Span::from(format!("  {error}")).fg(Color::Red)),
        (None, Some(Look { report, controller, fleet, .. })) => {
            let since = format!("  {}  {}  since {:.0}", report.mode, report.attach, report.since);
            spans.push(Span::from(since));
            if let Some(services) = report.answered() {
                spans.push(Span::from(format!("  ANSWERING {services}")).bold().fg(Color::Yellow));
            }
            if let Some(fleet) = fleet {
                spans.push(match fleet.is_in_step() {
                    true => Span::from("  fleet in step"),
                    false => Span::from("  FLEET OUT OF STEP").bold().fg(Color::Red),
                });
                if !fleet.link.is_connected {
                    spans.push(Span::from("  no etcd").fg(Color::Yellow));
                }
            }
            if !controller {
                spans.push(Span::from("  no controller").fg(Color::Red));
            }
        }
        (None, None) => {}
    }
    if model.paused {
        spans.push(Span::from("  PAUSED").bold().fg(Color::Yellow));
    }
    frame.render_widget(Line::from(spans), area);
}

fn panel(model: &Model, panel: Panel, title: &str) -> Block<'static> {
    let block = Block::bordered().border_type(BorderType::Rounded).title(Span::from(format!(" {title} ")));
    if model.focus == panel { block.border_style(Color::Cyan).title_style(Modifier::BOLD) } else { block }
}

fn draw_classes(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let title = model.service.as_ref().map_or_else(|| "SYNs".to_owned(), |name| format!("SYNs of {name}"));
    let block = panel(model, Panel::Classes, &title);
    let inner = block.inner(area);
    let rates = model.rates();
    let all = rates.map_or(0.0, |rates| rates.all());
    let row = |name: &'static str, of: &dyn Fn(&Rates) -> f64, color| {
        let now = rates.as_ref().map(of);
        let share = now.filter(|_| all > 0.0).map(|now| format!("{:.1}%", now / all * 100.0));
        Row::new([
            Cell::from(name).fg(color),
            right(now.map_or_else(unknown, per_second)),
            right(share.unwrap_or_else(unknown)),
        ])
    };
    let classes = Class::ALL
        .iter()
        .map(|class| row(class.name(), &|rates: &Rates| rates.classes[class.index()], color(*class)));
    let families = Family::ALL
        .iter()
        .map(|family| row(family.name(), &|rates: &Rates| rates.families[family.index()], Color::Reset));
    let widths = [Constraint::Length(17), Constraint::Length(8), Constraint::Length(6)];
    let table = Table::new(classes.chain(families), widths)
        .header(header(["class", "a second", "share"]))
        .block(block)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(model.selected(Panel::Classes));
    frame.render_stateful_widget(table, area, &mut state);

    let lines = Class::ALL
        .iter()
        .map(|class| (color(*class), trail(model, |rates| rates.classes[class.index()])))
        .chain(
            Family::ALL
                .iter()
                .map(|family| (Color::Reset, trail(model, |rates| rates.families[family.index()]))),
        );
    for (line, (color, trail)) in (1..inner.height).zip(lines) {
        let place = Rect {
            x: inner.x + BEFORE_SPARKLINE,
            y: inner.y + line,
            width: inner.width.saturating_sub(BEFORE_SPARKLINE),
            height: 1,
        };
        let sparkline = Sparkline::default().data(trail).direction(RenderDirection::RightToLeft);
        frame.render_widget(sparkline.style(color), place);
    }
}

/// Returns a rate for each past second, newest first, in thousandths because a sparkline takes whole numbers.
fn trail(model: &Model, of: impl Fn(&Rates) -> f64) -> Vec<Option<u64>> {
    model.trail.iter().map(|rates| rates.as_ref().map(|rates| (of(rates) * 1000.0) as u64)).collect()
}

fn draw_outcomes(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let service = model.service.as_deref();
    let outcomes = model.look.as_ref().and_then(|look| look.totals(service).outcomes);
    let title = if outcomes.is_some() { "Outcomes" } else { "Outcomes (kernel's totals)" };
    let block = panel(model, Panel::Outcomes, title);
    let Some(look) = &model.look else { return frame.render_widget(block, area) };
    let (rates, totals) = (model.rates(), look.totals(service));
    let row = |name: &'static str, now: Option<f64>, total: Option<u64>, color| {
        Row::new([
            Cell::from(name).fg(color),
            right(now.map_or_else(unknown, per_second)),
            right(total.map_or_else(unknown, count)),
        ])
    };
    let both = look.accepted_and_refused(service);
    let rows = [
        row("accepted", rates.and_then(|r| r.accepted), both.map(|[accepted, _]| accepted), Color::Green),
        row("refused", rates.and_then(|r| r.refused), both.map(|[_, refused]| refused), Color::Red),
        row("queue full", None, look.kernel.map(|kernel| kernel.listen_overflow), Color::Reset),
        row("translated", rates.map(|r| r.rewritten), Some(totals.rewritten), Color::Reset),
        row("protected", rates.map(|r| r.guarded), Some(totals.guarded), Color::Reset),
        row("malformed", rates.map(|r| r.malformed), Some(totals.malformed), Color::Reset),
        row("unsupported", rates.map(|r| r.unsupported), Some(totals.unsupported), Color::Reset),
    ];
    let widths = [Constraint::Length(11), Constraint::Length(8), Constraint::Fill(1)];
    let table = Table::new(rows, widths).header(header(["", "a second", "in all"])).block(block);
    let inner = Block::bordered().inner(area);
    frame.render_widget(table, area);

    let [took, not] = both.unwrap_or_default();
    let share = match took + not {
        0 => "none yet".to_owned(),
        all => format!("{:.1}% accepted", took as f64 / all as f64 * 100.0),
    };
    let saved = match outcomes {
        None => "saved: not available".to_owned(),
        Some(Outcomes { measured, saved_us, .. }) => {
            format!("saved {} in {} connections", seconds(saved_us as f64 / 1e6), count(measured))
        }
    };
    let below = Rect { y: inner.y + 8, height: inner.height.saturating_sub(8), ..inner };
    frame.render_widget(Paragraph::new(format!("{share}\n{saved}")).wrap(Wrap { trim: true }), below);
}

fn draw_keys(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let in_step = match model.look.as_ref().and_then(|look| look.in_step) {
        Some(true) => ", in step",
        Some(false) => ", OUT OF STEP",
        None => "",
    };
    let next = model.look.as_ref().and_then(|look| look.next_secret_in);
    let next = next.map_or_else(String::new, |seconds| format!(", new secret in {}", age(seconds)));
    let block = panel(model, Panel::Keys, &format!("Keys{in_step}{next}"));
    let keys = model.look.as_ref().map_or(&[][..], |look| &look.keys);
    if keys.is_empty() {
        return frame.render_widget(Paragraph::new("none yet").dim().block(block), area);
    }
    let rows = keys.iter().map(|key| {
        Row::new([
            Cell::from(key.role),
            Cell::from(key.fingerprint.as_str()),
            right(age(key.age)),
            right(count(key.hits)),
        ])
    });
    let widths = [Constraint::Length(7), Constraint::Length(16), Constraint::Length(4), Constraint::Fill(1)];
    let table = Table::new(rows, widths)
        .header(header(["role", "fingerprint", "age", "hits"]))
        .block(block)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(model.selected(Panel::Keys));
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_prefixes(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let block = panel(model, Panel::Prefixes, "Source prefixes");
    let Some(prefixes) = model.look.as_ref().and_then(|look| look.prefixes.as_ref()) else {
        return frame.render_widget(Paragraph::new("not available").dim().block(block), area);
    };
    let rows = prefixes.iter().map(|row| {
        let [requests, valid, unknown] = [row.requests, row.valid, row.unknown].map(|n| right(count(n)));
        Row::new([Cell::from(row.prefix.as_str()), requests, valid, unknown])
    });
    let number = Constraint::Length(7);
    let table = Table::new(rows, [Constraint::Fill(1), number, number, number])
        .header(header(["prefix", "asked", "valid", "unknown"]))
        .block(block)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(model.selected(Panel::Prefixes));
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_destinations(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let client = model.look.as_ref().and_then(|look| look.report.client.as_ref());
    let saved = client.map_or_else(String::new, |client| {
        let [saved, cost] = [client.rtt_saved.seconds, client.lost_seconds].map(seconds);
        format!(", saved {saved}, cost {cost}")
    });
    let block = panel(model, Panel::Prefixes, &format!("From here{saved}"));
    let Some(client) = client else {
        return frame.render_widget(Paragraph::new("not available").dim().block(block), area);
    };
    let rows = client.destinations.iter().map(|row| {
        let Counts { accepted, refused, lost, .. } = row.counts;
        let [accepted, refused, lost] = [accepted, refused, lost].map(|n| right(count(n)));
        // The port comes first, since a narrow terminal cuts the end.
        Row::new([Cell::from(format!("{} {}", row.port, row.network)), accepted, refused, lost])
    });
    let number = Constraint::Length(4);
    let widths = [Constraint::Fill(1), Constraint::Length(5), number, number];
    let table = Table::new(rows, widths)
        .header(header(["to", "taken", "not", "lost"]))
        .block(block)
        .row_highlight_style(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(model.selected(Panel::Prefixes));
    frame.render_stateful_widget(table, area, &mut state);
}

fn draw_events(frame: &mut Frame<'_>, model: &Model, area: Rect) {
    let block = panel(model, Panel::Events, "Latest events");
    let Some(events) = model.look.as_ref().and_then(|look| look.events.as_ref()) else {
        return frame.render_widget(Paragraph::new("not available").dim().block(block), area);
    };
    let list = List::new(events.iter().map(|line| ListItem::new(line.as_str())))
        .block(block)
        .highlight_style(Modifier::REVERSED);
    let mut state = ListState::default().with_selected(model.selected(Panel::Events));
    frame.render_stateful_widget(list, area, &mut state);
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (54, HELP.len() as u16 + 2);
    let place =
        Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    let lines = HELP.iter().map(|(keys, what)| Line::from(format!(" {keys:<16} {what}")));
    let block = Block::bordered().border_type(BorderType::Double).title(" Keys on the keyboard ");
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), place);
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    // Numbers are aligned to the right, and so are their heads.
    let cell = |(at, name): (usize, &'static str)| {
        let text = Line::from(name);
        let is_text = at == 0 || name == "fingerprint";
        Cell::from(if is_text { text } else { text.alignment(Alignment::Right) })
    };
    Row::new(names.into_iter().enumerate().map(cell)).style(Style::new().add_modifier(Modifier::DIM))
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).alignment(Alignment::Right))
}

fn unknown() -> String {
    "–".to_owned()
}

/// Writes a rate in at most eight characters.
fn per_second(rate: f64) -> String {
    match rate {
        rate if rate >= 99_999.5 => count(rate as u64),
        rate if rate >= 99.95 => format!("{rate:.0}"),
        rate => format!("{rate:.1}"),
    }
}

/// Writes a number in at most eight characters.
fn count(number: u64) -> String {
    const UNITS: [(u64, &str); 4] =
        [(1_000_000_000_000_000, "P"), (1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M")];
    match UNITS.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => format!("{:.1}{name}", number as f64 / *unit as f64),
        None => number.to_string(),
    }
}

/// Writes an age in its largest unit: at most four characters up to 999 days.
fn age(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * *unit);
    unit.map_or_else(|| format!("{seconds}s"), |(unit, name)| format!("{}{name}", seconds / unit))
}

fn color(class: Class) -> Color {
    match class {
        Class::PlainSyn | Class::OptionIgnored => Color::Reset,
        Class::CookieRequest => Color::Blue,
        Class::CookieCurrent | Class::CookieBackup => Color::Green,
        Class::CookieRetired => Color::Yellow,
        Class::CookieUnknown | Class::CookieBadLength => Color::Red,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::fleet::feed::State;
    use crate::view::{
        client::{Client, Destination},
        counters::{GuardRow, ServiceReport},
        key_listing::Generation,
        rtt_saved::RttSaved,
        tui::model::{Prefix, tests::look},
    };

    fn picture(model: &Model, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    /// Returns the first line of the picture that contains `name`.
    fn line(picture: &str, name: &str) -> String {
        picture
            .lines()
            .find(|line| line.contains(name))
            .unwrap_or_else(|| panic!("{name}: {picture}"))
            .to_owned()
    }

    fn busy() -> Model {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        for second in 0..30 {
            model.record(look(start, second, Class::CookieCurrent, second * second));
        }
        model
    }

    #[test]
    fn rates_shares_and_totals_are_in_the_picture() {
        let mut model = busy();
        let shown = picture(&model, 80, 24);
        // 29² - 28² in the last second.
        let current = line(&shown, "cookie_current");
        assert!(current.contains("57.0") && current.contains("100.0%") && current.contains('█'), "{shown}");
        assert!(line(&shown, "cookie_backup").contains("0.0%"), "{shown}");
        assert!(line(&shown, "accepted").contains("420"), "{shown}");
        assert!(shown.contains("100.0% accepted"), "{shown}");
        assert_eq!(shown.matches("not available").count(), 3, "{shown}");

        model.record_error("v0 is gone".to_owned());
        let shown = picture(&model, 80, 24);
        assert!(shown.contains("v0 is gone") && !shown.contains("57.0"), "{shown}");
        assert!(line(&shown, "accepted").contains("420"), "the last totals: {shown}");
    }

    #[test]
    fn keys_prefixes_and_events_are_in_the_picture() {
        let mut model = busy();
        let mut next = model.look.clone().unwrap();
        next.keys = vec![Generation {
            role: "current",
            fingerprint: "00112233deadbeef".to_owned(),
            age: 7300,
            hits: 12,
            share: 1.0,
            goes_in: None,
        }];
        let prefix = "2001:db8:aaaa::/64".to_owned();
        next.prefixes = Some(vec![Prefix { prefix, requests: 1, valid: 22, unknown: 333 }]);
        next.events = Some(vec!["cookie of a key that went".to_owned(); 40]);
        model.record(next);
        let shown = picture(&model, 80, 23);
        assert!(line(&shown, "00112233deadbeef").contains("2h"), "{shown}");
        let prefix = line(&shown, "2001:db8:aaaa");
        assert!(prefix.contains("22") && prefix.contains("333"), "{shown}");
        assert!(shown.contains("cookie of a key that went"), "{shown}");
    }

    #[test]
    fn destinations_take_the_place_of_sources() {
        let mut model = busy();
        model.destinations = true;
        assert!(picture(&model, 80, 24).contains("From here"), "also where they are not followed");
        let counts = Counts { granted: 1, accepted: 22, refused: 3, lost: 4, ..Counts::default() };
        let network = "2001:db8:aaaa::/48".to_owned();
        model.look.as_mut().unwrap().report.client = Some(Client {
            families: Vec::new(),
            rtt_saved: RttSaved::default(),
            lost_seconds: 4.2,
            destinations: vec![Destination { network, port: 443, counts }],
            destinations_forgotten: 0,
            cookies_held: None,
        });
        let shown = picture(&model, 80, 24);
        assert!(shown.contains("443 2001:db8:aaaa::/48    22    3    4│"), "{shown}");
        assert!(shown.contains("cost 4.2 s"), "{shown}");
    }

    #[test]
    fn every_size_has_a_picture() {
        let mut model = busy();
        for help in [false, true] {
            model.help = help;
            for width in [1, 2, 20, 71, 72, 79, 120, 400] {
                for height in [1, 2, 18, 19, 23, 24, 60, 100] {
                    let shown = picture(&model, width, height);
                    let is_small = width < MIN_SIZE.0 || height < MIN_SIZE.1;
                    assert_eq!(shown.contains("╭ SYNs ─"), !is_small, "{width} × {height}: {shown}");
                }
            }
        }
        assert!(picture(&model, 60, 20).contains("too small: 60 × 20"));
        assert!(picture(&model, 80, 24).contains("the next interface"));
    }

    #[test]
    fn what_protections_did_is_shown() {
        let (mut model, start) = (Model::new("v0"), Instant::now());
        for second in 0..2 {
            let mut look = look(start, second, Class::PlainSyn, 0);
            look.report.services = [("web", 700), ("dns", 20)]
                .map(|(name, acted)| ServiceReport {
                    name: name.to_owned(),
                    syn: Vec::new(),
                    accepted: 0,
                    refused: 0,
                    rtt_saved: RttSaved::default(),
                    guards: vec![GuardRow { guard: "fair", acted: acted + second, would: 1_000_000 }],
                    unfollowed: Vec::new(),
                })
                .into();
            model.record(look);
        }
        let protected = |model: &Model| {
            let line = line(&picture(model, 100, 24), "protected");
            let (_, words) = line.split_once("protected").unwrap();
            words.split_whitespace().take(2).map(|word| word.replace(['│', '"'], "")).collect::<Vec<_>>()
        };
        assert_eq!(protected(&model), ["2.0", "722"]);
        model.next_service();
        assert_eq!(protected(&model)[1], "701");
    }

    #[test]
    fn services_that_are_answered_are_shown() {
        let mut model = busy();
        assert!(!picture(&model, 100, 24).contains("ANSWERING"));
        model.look.as_mut().unwrap().report.answering = ["dns", "web"].map(str::to_owned).into();
        assert!(picture(&model, 100, 24).lines().next().unwrap().contains("ANSWERING dns, web"));
    }

    #[test]
    fn the_head_says_how_the_fleet_is() {
        let mut model = busy();
        let head = |model: &Model| picture(model, 100, 24).lines().next().unwrap().to_owned();
        assert!(!head(&model).to_lowercase().contains("fleet"));
        let mut fleet = State::default();
        fleet.link.is_connected = true;
        model.look.as_mut().unwrap().fleet = Some(fleet.clone());
        assert!(head(&model).contains("fleet in step") && !head(&model).contains("no etcd"));
        fleet.link.taken.generation = 7;
        fleet.link.is_connected = false;
        model.look.as_mut().unwrap().fleet = Some(fleet);
        assert!(head(&model).contains("FLEET OUT OF STEP  no etcd"), "{}", head(&model));
    }

    #[test]
    fn numbers_are_short() {
        for number in [0, 999_999, 1_000_000, 123_456_789_012, u64::MAX] {
            assert!(count(number).len() <= 8, "{}", count(number));
            assert!(per_second(number as f64).len() <= 8, "{}", per_second(number as f64));
        }
        assert_eq!([age(59), age(7300), age(86_400 * 40)], ["59s", "2h", "40d"]);
        assert_eq!([per_second(0.25), per_second(99.97), per_second(123_456.0)], ["0.2", "100", "123456"]);
    }
}
