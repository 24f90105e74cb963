//! Second implementation of what guards decide, class by class, for comparison.

use tfo_common::{
    class::Class,
    policy::{Guard, Policy},
    verdict::Verdict,
};

/// Setting of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The guard is absent.
    Off,
    /// The guard only counts (dry run).
    Dry,
    /// The guard acts.
    Acts,
}

/// Whether a listener on the port of a SYN needs no cookie, and whether the SYN has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// A cookie is needed.
    No,
    /// No cookie is needed, and the SYN has no data.
    WithoutData,
    /// No cookie is needed, and the SYN has data.
    WithData,
}

impl Open {
    /// All values.
    pub const ALL: [Self; 3] = [Self::No, Self::WithoutData, Self::WithData];
}

/// Settings of a service, and the orders that concern it.
#[derive(Clone, Copy, Debug)]
pub struct ServiceSettings {
    /// Setting of each guard, by [`Guard`] index.
    pub guards: [Setting; Guard::COUNT],
    /// Whether cookies may be translated.
    pub translates: bool,
    /// Whether the service is hidden by order.
    pub hidden: bool,
    /// Whether all services are hidden by order.
    pub all_hidden: bool,
    /// Whether some sources are hidden by order.
    pub hides_sources: bool,
    /// Whether `shed` drops SYNs.
    pub drops: bool,
    /// Whether `answer` is engaged.
    pub answers: bool,
}

impl ServiceSettings {
    /// Returns the settings with these guards, and nothing else.
    pub fn of(guards: [Setting; Guard::COUNT]) -> Self {
        Self {
            guards,
            translates: false,
            hidden: false,
            all_hidden: false,
            hides_sources: false,
            drops: false,
            answers: false,
        }
    }

    /// Returns the policy with these settings.
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
            (Policy::ANSWERS, self.answers),
        ] {
            policy.flags |= if is_set { flag } else { 0 };
        }
        policy
    }

    /// Returns the expected decision for a SYN of `class`, where `open` listeners may need no cookie. `has_translation` says
    /// whether the kernel holds a key to translate into, `triggers` which guards have a reason to act.
    pub fn expected(
        &self,
        class: Class,
        open: Open,
        has_translation: bool,
        triggers: impl Fn(Guard) -> bool,
    ) -> Expected {
        let translated = class == Class::CookieRetired && self.translates && has_translation;
        let is_good = translated || matches!(class, Class::CookieCurrent | Class::CookieBackup);
        let has_option = !matches!(class, Class::PlainSyn | Class::OptionIgnored);
        let concerned: &[Guard] = match class {
            // Here the kernel serves all that has data or the option.
            Class::CookieUnknown | Class::CookieBadLength if open != Open::No => Guard::ALL,
            _ if open == Open::WithData || open == Open::WithoutData && has_option => {
                &[Guard::Hide, Guard::Once, Guard::Fair, Guard::Clamp, Guard::Answer]
            }
            Class::PlainSyn | Class::OptionIgnored => &[Guard::Answer],
            Class::CookieRetired if !translated => &[Guard::Hide, Guard::Answer],
            Class::CookieRequest => &[Guard::Hide, Guard::Answer],
            Class::CookieCurrent | Class::CookieBackup | Class::CookieRetired => {
                &[Guard::Hide, Guard::Once, Guard::Fair, Guard::Clamp, Guard::Answer]
            }
            Class::CookieUnknown | Class::CookieBadLength => &[Guard::Hide, Guard::Shed, Guard::Answer],
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
            if *guard == Guard::Answer {
                // A good cookie goes to the kernel, and so does the SYN of a service that is not flooded.
                if !self.answers || is_good && expected.verdict != Verdict::Hide {
                    continue;
                }
                match setting {
                    Setting::Acts => {
                        expected.verdict = Verdict::Answer;
                        expected.guard = expected.guard.or(Some(*guard));
                    }
                    Setting::Dry => expected.would |= 1 << guard.index(),
                    Setting::Off => {}
                }
                continue;
            }
            if expected.verdict == Verdict::Hide {
                continue;
            }
            let (needs_reason, has_to) = match guard {
                Guard::Hide if setting == Setting::Acts || self.hidden || self.all_hidden => (false, true),
                Guard::Hide => (self.hides_sources, self.hides_sources && triggers(*guard)),
                _ => (setting != Setting::Off, setting == Setting::Acts && triggers(*guard)),
            };
            let would = setting == Setting::Dry && !has_to && (*guard == Guard::Hide || triggers(*guard));
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
            if is_dropped {
                expected.verdict = Verdict::Drop;
                break;
            }
            expected.verdict = Verdict::Hide;
        }
        expected
    }
}

impl Expected {
    /// Returns the decision on the same SYN after its last step: with data, it is dropped where it would be hidden in vain.
    pub fn last(self, open: Open) -> Self {
        let in_vain = open == Open::WithData && self.verdict == Verdict::Hide;
        Self { verdict: if in_vain { Verdict::Drop } else { self.verdict }, ..self }
    }

    /// Returns the decision on the same SYN if it is signed, and whether it would have been changed or dropped otherwise.
    /// Guards are asked all the same.
    pub fn signed(self) -> (Self, bool) {
        let acts = self.clamps || self.verdict != Verdict::Pass;
        (Self { verdict: Verdict::Pass, clamps: false, guard: None, would: 0, asked: self.asked }, acts)
    }
}

/// Expected decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Verdict on the SYN.
    pub verdict: Verdict,
    /// Whether the window is cut.
    pub clamps: bool,
    /// Guard that decided.
    pub guard: Option<Guard>,
    /// Bits of the guards in a dry run that would have decided, by [`Guard`] index.
    pub would: u8,
    /// Bits of the guards that are asked whether they have a reason. Asking may use up part of a source's rate limit.
    pub asked: u8,
}
