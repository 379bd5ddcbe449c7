//! What the customer and the provider's people do.

use davy_decision::{
    action::{By, State},
    case::{Finding, Opinion, Person},
    dossier::{Event, Refusal},
    policy::Step,
    text::Reason,
};

use crate::{
    Bend, Protocol,
    books::{Broken, Seen, Text, Word},
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
    /// A person says that it is abuse.
    Deny {
        /// Who.
        by: u8,
        /// What is to be done.
        measure: Step,
        /// Whether they take the text that everybody copies.
        copied: bool,
    },
    /// A person takes back.
    TakeBack,
}

/// The design's hold, ms.
const HOLD_MS: u64 = 30 * 86_400_000;

fn person(n: u8) -> Person {
    Person(format!("p{n}"))
}

/// The words of a text.
fn reason(text: Text) -> Option<Reason> {
    let name = match text {
        Text::Own(by, nth) => format!("{by}x{nth}"),
        Text::Stock => "stock".to_owned(),
    };
    let words: Vec<_> = (0..10).map(|word| format!("w{name}y{word}")).collect();
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
        if left.take_backs > 0 {
            add(Act::TakeBack);
        }
        if left.denials == 0 {
            return;
        }
        for by in 0..self.config.deniers {
            for &measure in &self.config.measures {
                for copied in [false, true] {
                    if !copied || self.config.copies {
                        add(Act::Deny {
                            by,
                            measure,
                            copied,
                        });
                    }
                }
            }
        }
    }

    pub(crate) fn person(&self, world: &mut World, n: u8, act: Act) -> Option<()> {
        match act {
            Act::Write => self.write(world, n),
            Act::Unlock(legitimate) => self.unlock(world, n, legitimate),
            Act::Deny {
                by,
                measure,
                copied,
            } => self.deny(world, n, by, measure, copied),
            Act::TakeBack => self.take_back(world, n),
        }
    }

    fn write(&self, world: &mut World, n: u8) -> Option<()> {
        let (key, at) = (format!("m{}", world.left.messages), self.time(world.now));
        world.left.messages -= 1;
        let bent = self.bent(Bend::WordUnheard);
        Self::change(world, n, |dossier, _| {
            let planned = dossier.actions.clone();
            let heard = dossier.hear(&key, "ticket", "it is my build farm", at)?;
            if bent {
                dossier.actions = planned;
            }
            Ok::<_, Refusal>(heard)
        })?;
        // Whatever was said before does not answer this.
        let book = world.books.accounts.get_mut(usize::from(n))?;
        book.waits = true;
        book.decide(None);
        world.books.spoken(n);
        Some(())
    }

    fn unlock(&self, world: &mut World, n: u8, legitimate: bool) -> Option<()> {
        let (at, nth) = (self.time(world.now), world.left.unlocks);
        world.left.unlocks -= 1;
        let (settings, bent) = (&self.config.settings, self.bent(Bend::ForgottenHold));
        Self::change(world, n, |dossier, _| {
            let appealed = |case: &davy_decision::case::Case| case.appealed_at.is_some();
            let review = dossier.case.as_ref().is_some_and(appealed);
            let reason = reason(Text::Own(9, nth)).filter(|_| review);
            let events = dossier.unlock(&person(9), legitimate, reason, [], settings, at)?;
            if bent {
                dossier.holds.clear();
            }
            Ok::<_, Refusal>(events)
        })?;
        let book = world.books.accounts.get_mut(usize::from(n))?;
        // Of an unlocked case it is a second review, and changes nothing; of a denied one it is an unlock.
        let denied = book
            .case
            .is_some_and(|case| case.decided == Some(Word::Denied));
        if !book.decides() && !denied {
            return Some(());
        }
        (book.waits, book.ruled) = (false, None);
        book.held_until_ms = Some(at.unix_ms() + HOLD_MS);
        book.allowed |= legitimate;
        book.decide(Some(match legitimate {
            true => Word::Legitimate,
            false => Word::Unsure,
        }));
        world.books.spoken(n);
        Some(())
    }

    fn deny(&self, world: &mut World, n: u8, by: u8, measure: Step, copied: bool) -> Option<()> {
        let (at, nth) = (self.time(world.now), world.left.denials);
        world.left.denials -= 1;
        let text = match copied {
            true => Text::Stock,
            false => Text::Own(by, nth),
        };
        // Where it is broken, each sign-in is another person, and each copy a text of its own.
        let alias = match self.bent(Bend::OnePersonTwice) {
            true => person(10 + nth),
            false => person(by),
        };
        let opinion = Opinion {
            by: alias,
            at,
            finding: Finding::Deny,
            measure: Some(measure),
            reason: reason(match self.bent(Bend::CopiesTaken) {
                true => Text::Own(by, nth),
                false => text,
            })?,
        };
        let settings = &self.config.settings;
        let given: Vec<_> = (world.texts.iter().filter(|_| !self.bent(Bend::CopiesTaken)))
            .filter_map(|text| reason(*text))
            .collect();
        let (bent, rests) = (
            self.bent(Bend::HarsherStands),
            self.bent(Bend::RestsOnDoubt),
        );
        let in_doubt = |held: &davy_decision::action::Action| {
            matches!(held.state, State::Released { .. } | State::Doubtful { .. })
        };
        let taken = Self::change(world, n, |dossier, _| {
            let opined =
                dossier.opine(opinion, given.iter().map(|text| ("a case", text)), settings)?;
            if bent {
                dossier.actions.retain(|held| !held.key.undo);
            }
            if rests && dossier.actions.iter().any(in_doubt) {
                (dossier.actions).retain(|held| !matches!(held.by, By::Person { .. }));
            }
            Ok::<_, Refusal>(opined)
        });
        if taken.is_none() && world.texts.contains(&text) {
            world.books.seen.insert(Seen::CopyRefused);
            return Some(());
        }
        taken?;
        world.texts.insert(text);
        if !world.books.texts.insert(text) {
            world.books.broken.insert(Broken::Copied);
        }
        let book = world.books.accounts.get_mut(usize::from(n))?;
        if !book.decides() {
            return Some(());
        }
        book.deniers.insert(by, measure);
        if book.deniers.len() >= 2 {
            book.ruled = book.deniers.values().min().copied();
            book.waits = false;
            book.decide(Some(Word::Denied));
            world.books.ruled(n);
            world.books.seen.insert(Seen::DeniedByTwo);
        }
        Some(())
    }

    fn take_back(&self, world: &mut World, n: u8) -> Option<()> {
        let at = self.time(world.now);
        world.left.take_backs -= 1;
        let settings = &self.config.settings;
        let events = Self::change(world, n, |dossier, _| {
            dossier.take_back(&person(8), settings, at)
        })?;
        let reopened = |event: &Event| matches!(event, Event::TakenBack { .. });
        let reopened = events.iter().any(reopened);
        let book = world.books.accounts.get_mut(usize::from(n))?;
        match book.case.and_then(|case| case.decided) {
            Some(Word::Legitimate) if reopened => book.allowed = false,
            Some(Word::Legitimate | Word::Unsure) => {}
            Some(Word::Denied) | None => {
                (book.held_until_ms, book.ruled) = (Some(at.unix_ms() + HOLD_MS), None);
            }
        }
        // Nor does half a denial stand beside what somebody lifted.
        if reopened || book.decides() {
            book.decide(None);
        }
        world.books.spoken(n);
        Some(())
    }
}
