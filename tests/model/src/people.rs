//! What the customer and the provider's people do.

use davy_decision::{
    case::{Finding, Opinion, Person, Ruling, State as CaseState},
    dossier::{Dossier, Refusal},
    policy::Step,
    text::Reason,
    time::Span,
};

use crate::{
    Bend, Protocol,
    books::{Broken, Seen},
    shell::Action,
    world::World,
};

/// What somebody does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// The customer writes.
    Write,
    /// A person unlocks, and says whether the customer is in the right.
    Unlock(bool),
    /// A person of that number says that it is abuse, to be locked.
    Deny(u8),
    /// A person takes back.
    TakeBack,
}

/// The design's hold.
const HOLD: Span = Span::days(30);
/// People who deny.
const DENIERS: u8 = 3;

fn person(n: u8) -> Person {
    Person(format!("p{n}"))
}

/// A reason that no other person, at no other time, gave.
fn reason(by: u8, nth: u8) -> Option<Reason> {
    let words: Vec<_> = (0..10).map(|word| format!("w{by}x{nth}y{word}")).collect();
    Reason::try_from(words.join(" ")).ok()
}

impl Protocol {
    pub(crate) fn people_may(&self, world: &World, n: u8, actions: &mut Vec<Action>) {
        let left = &world.left;
        let mut add = |act| actions.push(Action::Person(n, act));
        if left.messages > 0 {
            add(Act::Write);
        }
        if left.unlocks > 0 {
            add(Act::Unlock(false));
            add(Act::Unlock(true));
        }
        if left.denials > 0 {
            (0..DENIERS).for_each(|by| add(Act::Deny(by)));
        }
        if left.take_backs > 0 {
            add(Act::TakeBack);
        }
    }

    pub(crate) fn person(&self, world: &mut World, n: u8, act: Act) -> Option<()> {
        let before = world.accounts.get(usize::from(n))?.dossier.clone();
        match act {
            Act::Write => self.write(world, n)?,
            Act::Unlock(legitimate) => self.unlock(world, n, legitimate)?,
            Act::Deny(by) => self.deny(world, n, by)?,
            Act::TakeBack => self.take_back(world, n)?,
        }
        // Opinions stand for one case, until it is appealed.
        let after = &world.accounts.get(usize::from(n))?.dossier;
        let appealed = |dossier: &Dossier| dossier.case.as_ref().and_then(|case| case.appealed_at);
        if before.cases != after.cases || appealed(&before) != appealed(after) {
            let book = world.books.accounts.get_mut(usize::from(n))?;
            book.deniers.clear();
        }
        Some(())
    }

    fn write(&self, world: &mut World, n: u8) -> Option<()> {
        let (key, at) = (format!("m{}", world.left.messages), self.time(world.now));
        world.left.messages -= 1;
        Self::change(world, n, |dossier, _| {
            dossier.hear(&key, "ticket", "it is my build farm", at)
        })?;
        world.books.accounts.get_mut(usize::from(n))?.waits = true;
        Some(())
    }

    fn unlock(&self, world: &mut World, n: u8, legitimate: bool) -> Option<()> {
        let (at, nth) = (self.time(world.now), world.left.unlocks);
        world.left.unlocks -= 1;
        let (settings, bent) = (&self.config.settings, self.bent(Bend::ForgottenHold));
        let decides = decides(&world.accounts.get(usize::from(n))?.dossier);
        Self::change(world, n, |dossier, _| {
            let appealed = |case: &davy_decision::case::Case| case.appealed_at.is_some();
            let review = dossier.case.as_ref().is_some_and(appealed);
            let reason = reason(9, nth).filter(|_| review);
            let events = dossier.unlock(&person(9), legitimate, reason, [], settings, at)?;
            if bent {
                dossier.holds.clear();
            }
            Ok::<_, Refusal>(events)
        })?;
        if decides {
            let book = world.books.accounts.get_mut(usize::from(n))?;
            (book.waits, book.held_until) = (false, Some(at.after(HOLD)));
            book.allowed |= legitimate;
            book.deniers.clear();
        }
        Some(())
    }

    fn deny(&self, world: &mut World, n: u8, by: u8) -> Option<()> {
        let (at, nth) = (self.time(world.now), world.left.denials);
        world.left.denials -= 1;
        let settings = &self.config.settings;
        let decides = decides(&world.accounts.get(usize::from(n))?.dossier);
        // Where it is broken, each sign-in is another person.
        let alias = if self.bent(Bend::OnePersonTwice) {
            person(10 + nth)
        } else {
            person(by)
        };
        let opinion = Opinion {
            by: alias,
            at,
            finding: Finding::Deny,
            measure: Some(Step::Lock),
            reason: reason(by, nth)?,
        };
        Self::change(world, n, |dossier, _| dossier.opine(opinion, [], settings))?;
        let dossier = &world.accounts.get(usize::from(n))?.dossier;
        let denied = dossier.case.as_ref().is_some_and(|case| {
            matches!(
                case.state,
                CaseState::Decided {
                    ruling: Ruling::Denied,
                    ..
                }
            )
        });
        let book = world.books.accounts.get_mut(usize::from(n))?;
        if !decides {
            return Some(());
        }
        book.deniers.insert(by);
        if denied {
            if book.deniers.len() < 2 {
                world.books.broken.insert(Broken::Denial);
            } else {
                world.books.seen.insert(Seen::LockedByTwo);
            }
            book.waits = false;
            book.deniers.clear();
        }
        Some(())
    }

    fn take_back(&self, world: &mut World, n: u8) -> Option<()> {
        let at = self.time(world.now);
        world.left.take_backs -= 1;
        let settings = &self.config.settings;
        let case = world.accounts.get(usize::from(n))?.dossier.case.clone();
        Self::change(world, n, |dossier, _| {
            dossier.take_back(&person(8), settings, at)
        })?;
        let book = world.books.accounts.get_mut(usize::from(n))?;
        let ruling = match case?.state {
            CaseState::Decided { ruling, .. } => Some(ruling),
            _ => None,
        };
        match ruling {
            Some(Ruling::Legitimate) => book.allowed = false,
            Some(Ruling::Unsure) => {}
            Some(Ruling::Denied) | None => book.held_until = Some(at.after(HOLD)),
        }
        if ruling.is_some() {
            book.deniers.clear();
        }
        Some(())
    }
}

/// Whether a word of a person decides the case now.
fn decides(dossier: &Dossier) -> bool {
    (dossier.case.as_ref())
        .is_some_and(|case| matches!(case.state, CaseState::Open | CaseState::Claimed { .. }))
}
