//! What guards are to decide, written down a second time: class by class, with what each may ask.

use tfo_common::{
    class::Class,
    policy::{Guard, Policy},
    verdict::Verdict,
};

/// What a guard is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// It is not there.
    Off,
    /// It is only counted.
    Dry,
    /// It acts.
    Acts,
}

/// What an operator wants.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// By [`Guard`] index.
    pub guards: [Setting; Guard::COUNT],
    /// Cookies may be translated.
    pub translates: bool,
    /// The service is hidden by order.
    pub hidden: bool,
    /// All are.
    pub all_hidden: bool,
    /// Some sources are.
    pub hides_sources: bool,
    /// What is shed is dropped.
    pub drops: bool,
}

impl Wanted {
    /// The policy that says so.
    pub fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        for (guard, setting) in Guard::ALL.iter().zip(self.guards) {
            match setting {
                Setting::Off => {}
                Setting::Dry => policy = policy.with(*guard, false),
                Setting::Acts => policy = policy.with(*guard, true),
            }
        }
        for (flag, is_set) in [
            (Policy::TRANSLATES, self.translates),
            (Policy::HIDDEN_SERVICE, self.hidden),
            (Policy::HIDDEN_ALL, self.all_hidden),
            (Policy::HIDES_SOURCES, self.hides_sources),
            (Policy::DROPS, self.drops),
        ] {
            policy.flags |= if is_set { flag } else { 0 };
        }
        policy
    }

    /// What is to be decided of a SYN of `class`, where the kernel holds a key to translate into or not, and those guards trip.
    pub fn expected(&self, class: Class, has_translation: bool, trips: impl Fn(Guard) -> bool) -> Expected {
        let translated = class == Class::CookieRetired && self.translates && has_translation;
        let concerned: &[Guard] = match class {
            Class::PlainSyn | Class::OptionIgnored => &[],
            Class::CookieRetired if !translated => &[Guard::Hide],
            Class::CookieRequest => &[Guard::Hide],
            Class::CookieCurrent | Class::CookieBackup | Class::CookieRetired => {
                &[Guard::Hide, Guard::Once, Guard::Fair, Guard::Clamp]
            }
            Class::CookieUnknown | Class::CookieBadLength => &[Guard::Hide, Guard::Shed],
        };
        let mut expected = Expected {
            verdict: if translated { Verdict::Rewrite } else { Verdict::Pass },
            clamps: false,
            guard: None,
            would: 0,
            asked: 0,
        };
        for guard in concerned {
            let setting = self.guards[guard.index()];
            let (needs_reason, has_to) = match guard {
                Guard::Hide if setting == Setting::Acts || self.hidden || self.all_hidden => (false, true),
                Guard::Hide => (self.hides_sources, self.hides_sources && trips(*guard)),
                _ => (setting != Setting::Off, setting == Setting::Acts && trips(*guard)),
            };
            let would = setting == Setting::Dry && !has_to && (*guard == Guard::Hide || trips(*guard));
            expected.asked |= u8::from(needs_reason) << guard.index();
            expected.would |= u8::from(would) << guard.index();
            if !has_to {
                continue;
            }
            expected.guard = Some(*guard);
            if *guard == Guard::Clamp {
                expected.clamps = true;
                continue;
            }
            let is_dropped = *guard == Guard::Shed && self.drops;
            expected.verdict = if is_dropped { Verdict::Drop } else { Verdict::Hide };
            break;
        }
        expected
    }
}

/// What is to be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What becomes of the SYN.
    pub verdict: Verdict,
    /// Whether its window is cut.
    pub clamps: bool,
    /// Who decided.
    pub guard: Option<Guard>,
    /// Who would have, by [`Guard`] index.
    pub would: u8,
    /// Who is asked whether he has a reason: that may cost a source part of its share.
    pub asked: u8,
}
