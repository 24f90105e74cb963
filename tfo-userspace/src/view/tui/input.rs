//! Keyboard input and its effects.

#![expect(clippy::wildcard_enum_match_arm, reason = "there are more keys than mean anything here")]

use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::Model;

/// Keys in the help, and their effects.
pub const HELP: [(&str, &str); 10] = [
    ("q  Esc  Ctrl-C", "quit"),
    ("Tab  h l  ← →", "the next or the previous panel"),
    ("j k  ↓ ↑", "a row down or up"),
    ("g G  Home End", "the first or the last row"),
    ("i", "the next interface"),
    ("s", "the next service, in the upper panels"),
    ("d", "destinations of connections from here, or sources"),
    ("p  Space", "pause, and go on"),
    ("Ctrl-Z", "suspend"),
    ("?", "this help; any key closes it"),
];

/// Action that the caller must carry out, since it needs more than the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leaves the caller nothing to do.
    None,
    /// Ends `tfo top`.
    Quit,
    /// Suspends the process and gives the terminal back.
    Suspend,
    /// Shows the next interface.
    NextInterface,
}

/// Applies a terminal event to the model, and returns the action that is left.
pub fn handle(event: &Event, model: &mut Model) -> Action {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => press(*key, model),
        // A resize needs no action: the size is read for each picture.
        _ => Action::None,
    }
}

fn press(key: KeyEvent, model: &mut Model) -> Action {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c') => Action::Quit,
            KeyCode::Char('z') => Action::Suspend,
            _ => Action::None,
        };
    }
    if model.help {
        model.help = false;
        return if key.code == KeyCode::Char('q') { Action::Quit } else { Action::None };
    }
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
        KeyCode::Char('i') => return Action::NextInterface,
        KeyCode::Char('s') => model.next_service(),
        KeyCode::Char('d') => model.destinations = !model.destinations,
        KeyCode::Char('?') => model.help = true,
        KeyCode::Char('p' | ' ') => model.paused = !model.paused,
        KeyCode::Char('l') | KeyCode::Right | KeyCode::Tab => model.focus_by(1),
        KeyCode::Char('h') | KeyCode::Left | KeyCode::BackTab => model.focus_by(-1),
        KeyCode::Char('j') | KeyCode::Down => model.move_by(1),
        KeyCode::Char('k') | KeyCode::Up => model.move_by(-1),
        KeyCode::Char('g') | KeyCode::Home => model.move_by(isize::MIN),
        KeyCode::Char('G') | KeyCode::End => model.move_by(isize::MAX),
        _ => {}
    }
    Action::None
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tfo_common::class::Class;

    use super::*;
    use crate::view::tui::model::{Panel, tests::look};

    fn type_in(model: &mut Model, keys: &str) -> Action {
        keys.chars().map(|key| press(KeyCode::Char(key).into(), model)).last().unwrap()
    }

    #[test]
    fn keys_of_vi_move_and_q_quits() {
        let mut model = Model::new("v0");
        model.record(look(Instant::now(), 0, Class::PlainSyn, 1));
        assert_eq!(type_in(&mut model, "jjk"), Action::None);
        assert_eq!(model.selected(Panel::Classes), Some(1));
        type_in(&mut model, "G");
        assert_eq!(model.selected(Panel::Classes), Some(9));
        type_in(&mut model, "gll");
        assert_eq!((model.focus, model.selected(Panel::Classes)), (Panel::Keys, None));
        type_in(&mut model, "hhp");
        assert_eq!((model.selected(Panel::Classes), model.paused), (Some(0), true));
        assert_eq!(type_in(&mut model, "i"), Action::NextInterface);
        assert_eq!(type_in(&mut model, "q"), Action::Quit);
        assert_eq!(press(KeyCode::Esc.into(), &mut model), Action::Quit);
    }

    #[test]
    fn any_key_closes_the_help_and_control_keys_are_heard_in_it() {
        let mut model = Model::new("v0");
        for (key, expected) in [(KeyCode::Esc, Action::None), (KeyCode::Char('q'), Action::Quit)] {
            type_in(&mut model, "?");
            assert!(model.help);
            assert_eq!(press(key.into(), &mut model), expected);
            assert!(!model.help);
        }
        let control = |key| KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL);
        type_in(&mut model, "?");
        assert_eq!(press(control('c'), &mut model), Action::Quit);
        assert_eq!(press(control('z'), &mut model), Action::Suspend);
    }
}
