//! What an account usually does against what is unusual now, for people who review a case. Pure, and decides nothing.
//!
//! Each comparison stands on data that is given; where there is none it says so, and whether it is unusual is not told. CPU load is
//! compared because reviewers ask for it: it is no evidence of mining.

use davy_evidence::Level;

use crate::{
    account::{Droplet, DropletId, Facts, Known, Link, greatest_burst},
    episode::{DropletEvidence, Episode},
    settings::Settings,
    time::{Span, Time},
};

/// CPU of at least so many times the usual is unusual, if it is also [`CPU_MORE`] more.
const CPU_TIMES: u64 = 2;
/// Per cent of one CPU.
const CPU_MORE: u64 = 50;
/// Fewer windows than this say nothing about what is usual: ten minutes at the agent's default of 10 s.
const WINDOWS_MIN: u64 = 60;
/// So many droplets at once are a burst worth a look: as many as the shipped policy asks for.
const BURST_MIN: usize = 5;
/// A burst counts as of now if it began at most so long before the episode.
const BURST_BEFORE: Span = Span::days(1);

/// A droplet's windows before the episode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// Which one.
    pub droplet: DropletId,
    /// How many windows are kept.
    pub windows: u64,
    /// Begin of the first.
    pub from: Time,
    /// End of the last.
    pub to: Time,
    /// CPU used over those that tell, per cent of one CPU; none: no window tells.
    pub mean_cpu_percent: Option<u64>,
    /// Windows that were at least `suspect`.
    pub not_quiet: u64,
}

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    /// The limits.
    pub settings: &'a Settings,
    /// The facts.
    pub facts: &'a Facts,
    /// The case's episode, if it is known still.
    pub episode: Option<&'a Episode>,
    /// Droplets' past, of those that have one.
    pub past: &'a [Past],
}

/// Expected against present behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Of what.
    pub what: String,
    /// What was usual.
    pub usually: String,
    /// What is.
    pub now: String,
    /// Whether it is unusual; none: cannot be told.
    pub unusual: Option<bool>,
}

/// Everything that can be compared, the account's first.
#[must_use]
pub fn compare(ground: &Ground<'_>) -> Vec<Comparison> {
    let mut all = vec![age(ground), spending(ground), burst(ground)];
    for droplet in ground
        .episode
        .iter()
        .flat_map(|held| held.droplets.values())
    {
        let past = (ground.past.iter()).find(|past| past.droplet == droplet.last.droplet);
        all.push(cpu(droplet, past));
        all.push(level(droplet, past));
    }
    all
}

fn unknown() -> String {
    "not known".to_owned()
}

fn age(ground: &Ground<'_>) -> Comparison {
    let (since, episode) = (ground.facts.engaged_since(), ground.episode);
    let now = match (since, episode) {
        (Some(since), Some(episode)) if episode.since >= since => {
            format!("the episode began {} after that", episode.since - since)
        }
        (_, Some(episode)) => format!("the episode began on {}", episode.since),
        (_, None) => "no episode lasts".to_owned(),
    };
    Comparison {
        what: "account".to_owned(),
        usually: since.map_or_else(unknown, |since| format!("engaged since {since}")),
        now,
        unusual: None,
    }
}

fn spending(ground: &Ground<'_>) -> Comparison {
    let invoice = (ground.facts.payments.as_ref()).map(|known| known.value.last_invoice);
    let rate = ground.facts.run_rate.map(|known| known.value);
    let usually = match invoice {
        None => unknown(),
        Some(None) => "no invoice yet, which is neither good nor bad".to_owned(),
        Some(Some(invoice)) => format!("last invoice {}", invoice.amount),
    };
    let unusual = match (invoice.flatten(), rate) {
        (Some(invoice), Some(rate)) => {
            let most = (invoice.amount.0).saturating_mul(ground.settings.run_rate_times);
            Some(rate.0 > most)
        }
        _ => None,
    };
    Comparison {
        what: "spending in a month".to_owned(),
        usually,
        now: rate.map_or_else(unknown, |rate| format!("run rate {rate}")),
        unusual,
    }
}

fn burst(ground: &Ground<'_>) -> Comparison {
    let what = "droplets created together".to_owned();
    let Some(Known { value: all, .. }) = &ground.facts.droplets else {
        return Comparison {
            what,
            usually: unknown(),
            now: unknown(),
            unusual: None,
        };
    };
    let within = ground.settings.burst_within_ms;
    let Some(burst) = greatest_burst(all, within) else {
        return Comparison {
            what,
            usually: "the account has no droplets".to_owned(),
            now: "none".to_owned(),
            unusual: Some(false),
        };
    };
    let recent = ground.episode.is_none_or(|episode| {
        burst.since >= episode.since.before(BURST_BEFORE) && burst.since <= episode.since
    });
    let earlier = |droplet: &&Droplet| droplet.created_at < burst.since;
    Comparison {
        what,
        usually: format!(
            "{} of its {} droplets are older",
            all.values().filter(earlier).count(),
            all.len()
        ),
        now: format!(
            "{} within {within}, from {} on",
            burst.droplets.len(),
            burst.since
        ),
        unusual: Some(burst.droplets.len() >= BURST_MIN && recent),
    }
}

fn cpu(droplet: &DropletEvidence, past: Option<&Past>) -> Comparison {
    let now = droplet.last.cpu_percent;
    let enough = past.filter(|past| past.windows >= WINDOWS_MIN);
    let mean = enough.and_then(|past| past.mean_cpu_percent);
    Comparison {
        what: format!("CPU of droplet {}", droplet.last.droplet),
        usually: match (past, mean) {
            (Some(past), Some(mean)) => format!(
                "{mean} % of one CPU over {} windows before the episode, from {} to {}",
                past.windows, past.from, past.to
            ),
            (Some(past), None) => format!("{} windows before the episode, too few", past.windows),
            (None, _) => "not known: nothing is kept from before the episode".to_owned(),
        },
        now: format!("{now} % (no evidence by itself)"),
        unusual: mean.map(|mean| {
            now >= mean.saturating_mul(CPU_TIMES) && now >= mean.saturating_add(CPU_MORE)
        }),
    }
}

fn level(droplet: &DropletEvidence, past: Option<&Past>) -> Comparison {
    let now = droplet.last.level;
    Comparison {
        what: format!("verdict on droplet {}", droplet.last.droplet),
        usually: match past {
            Some(past) if past.not_quiet == 0 => {
                format!("quiet in all {} windows kept", past.windows)
            }
            Some(past) => format!(
                "not quiet in {} of {} windows kept",
                past.not_quiet, past.windows
            ),
            None => "not known: nothing is kept from before the episode".to_owned(),
        },
        now: format!(
            "{now}; mining for {} and suspect for {} in the episode",
            droplet.mining.total_ms, droplet.suspect.total_ms
        ),
        unusual: (past.filter(|past| past.windows >= WINDOWS_MIN))
            .map(|past| now > Level::Quiet && past.not_quiet == 0),
    }
}

/// What a droplet did to those beside it, in words. `percent`: time they waited behind it, of the window.
#[must_use]
pub fn harm(percent: Option<u64>) -> String {
    match percent {
        None => "not known: no droplet beside it told".to_owned(),
        Some(0) => "none: nobody beside it waited behind it".to_owned(),
        Some(percent) => {
            let how = match percent {
                0..5 => "little",
                5..25 => "some",
                _ => "much",
            };
            format!("{how}: droplets beside it waited behind it for {percent} % of the window")
        }
    }
}

/// A fact, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its name, as in JSON.
    pub name: &'static str,
    /// In words; none: not known.
    pub value: Option<String>,
    /// The time it is of.
    pub as_of: Option<Time>,
}

/// All facts in words, links apart ([`links`]).
#[must_use]
pub fn tell(facts: &Facts) -> Vec<Told> {
    let Facts {
        created_at,
        first_payment_at,
        first_droplet_at,
        payments,
        run_rate,
        credit,
        high_cpu_allowed,
        vouched,
        links,
        droplets,
    } = facts;
    let or_none =
        |time: &Option<Time>| time.map_or_else(|| "none yet".to_owned(), |t| t.to_string());
    vec![
        told("created_at", created_at.as_ref(), ToString::to_string),
        told("first_payment_at", first_payment_at.as_ref(), or_none),
        told("first_droplet_at", first_droplet_at.as_ref(), or_none),
        told("payments", payments.as_ref(), |payments| {
            let invoice = match payments.last_invoice {
                None => "no invoice yet".to_owned(),
                Some(invoice) => format!(
                    "last invoice {} due {}: {}",
                    invoice.amount,
                    invoice.due,
                    format!("{:?}", invoice.state).to_lowercase()
                ),
            };
            format!(
                "settled {}, of which disputed {}; {invoice}",
                payments.settled, payments.disputed
            )
        }),
        told("run_rate", run_rate.as_ref(), |rate| {
            format!("{rate} a month")
        }),
        told("credit", credit.as_ref(), |credit| match credit {
            None => "none".to_owned(),
            Some(credit) if credit.programme.is_empty() => format!("{} left", credit.remaining),
            Some(credit) => format!("{} left of {}", credit.remaining, credit.programme),
        }),
        told("high_cpu_allowed", high_cpu_allowed.as_ref(), |set| {
            if *set { "yes" } else { "no" }.to_owned()
        }),
        told("vouched", vouched.as_ref(), |vouched| match vouched {
            None => "nobody vouches".to_owned(),
            Some(vouch) => format!("by {}", vouch.words()),
        }),
        told("links", links.as_ref(), |links| {
            format!("{}: context only, never a justification", links.len())
        }),
        told("droplets", droplets.as_ref(), |all| all.len().to_string()),
    ]
}

fn told<T>(name: &'static str, known: Option<&Known<T>>, say: impl Fn(&T) -> String) -> Told {
    Told {
        name,
        value: known.map(|known| say(&known.value)),
        as_of: known.map(|known| known.as_of),
    }
}

/// Links to other accounts: context only.
#[must_use]
pub fn links(facts: &Facts) -> &[Link] {
    (facts.links.as_ref()).map_or(&[], |known| known.value.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        account::{Cents, Invoice, InvoiceState, Payments},
        episode::Sighting,
    };

    const T0: Time = Time::from_unix_ms(1_559_148_180_000);

    fn episode(cpu_percent: u64) -> Episode {
        Episode::begin(
            1,
            Sighting {
                droplet: "d1".try_into().unwrap(),
                host: "h1".to_owned(),
                from: T0,
                to: T0.after(Span::minutes(20)),
                level: Level::Mining,
                classes: crate::episode::Classes::default(),
                cpu_percent,
                neighbours_wait_percent: None,
                reasons: Vec::new(),
            },
        )
    }

    fn past(windows: u64, mean: u64) -> Past {
        Past {
            droplet: "d1".try_into().unwrap(),
            windows,
            from: T0.before(Span::days(2)),
            to: T0,
            mean_cpu_percent: Some(mean),
            not_quiet: 0,
        }
    }

    fn told_of(what: &str, facts: &Facts, episode: &Episode, past: &[Past]) -> Comparison {
        let all = compare(&Ground {
            settings: &Settings::default(),
            facts,
            episode: Some(episode),
            past,
        });
        all.into_iter()
            .find(|told| told.what.starts_with(what))
            .unwrap()
    }

    #[test]
    fn cpu_is_unusual_only_against_a_past_that_says_enough() {
        let (facts, busy) = (Facts::default(), episode(400));
        let cpu = |past: &[Past]| told_of("CPU", &facts, &busy, past).unusual;
        assert_eq!(cpu(&[past(500, 20)]), Some(true));
        assert_eq!(cpu(&[past(500, 380)]), Some(false), "always busy");
        assert_eq!(cpu(&[past(59, 20)]), None, "too few windows");
        assert_eq!(cpu(&[]), None, "no past");
    }

    #[test]
    fn a_droplet_that_was_always_quiet_and_is_not_now_is_unusual() {
        let (facts, now) = (Facts::default(), episode(400));
        let mut before = past(500, 20);
        let told = told_of("verdict", &facts, &now, std::slice::from_ref(&before));
        assert_eq!(told.unusual, Some(true));
        assert!(told.usually.contains("quiet in all 500"), "{told:?}");
        before.not_quiet = 7;
        let told = told_of("verdict", &facts, &now, &[before]);
        assert_eq!(told.unusual, Some(false));
    }

    #[test]
    fn a_run_rate_is_held_against_the_last_invoice_and_no_invoice_against_nobody() {
        let known = |value| Some(Known { value, as_of: T0 });
        let paid = |last_invoice| Facts {
            payments: Some(Known {
                value: Payments {
                    last_invoice,
                    ..Payments::default()
                },
                as_of: T0,
            }),
            run_rate: known(Cents(40_000)),
            ..Facts::default()
        };
        let invoice = Invoice {
            amount: Cents(10_000),
            due: T0,
            state: InvoiceState::Paid,
        };
        let told = |facts: &Facts| told_of("spending", facts, &episode(1), &[]);
        assert_eq!(told(&paid(Some(invoice))).unusual, Some(true));
        assert_eq!(told(&paid(None)).unusual, None);
        assert!(told(&paid(None)).usually.contains("neither good nor bad"));
    }

    #[test]
    fn a_burst_is_told_with_what_was_there_before() {
        let at = |minutes| Droplet {
            created_at: T0.before(Span::minutes(minutes)),
            vcpus: 4,
        };
        let mut all: std::collections::BTreeMap<DropletId, Droplet> = (0..10)
            .map(|n| (format!("new{n}").try_into().unwrap(), at(30 - n)))
            .collect();
        all.insert("old".try_into().unwrap(), at(100_000));
        let facts = Facts {
            droplets: Some(Known {
                value: all,
                as_of: T0,
            }),
            ..Facts::default()
        };
        let told = told_of("droplets", &facts, &episode(1), &[]);
        assert_eq!(told.usually, "1 of its 11 droplets are older");
        assert!(told.now.starts_with("10 within 30 min"), "{told:?}");
        assert_eq!(told.unusual, Some(true));
    }

    #[test]
    fn what_is_not_known_is_said_to_be_so() {
        assert!(harm(None).starts_with("not known"));
        assert!(harm(Some(0)).starts_with("none"));
        assert!(harm(Some(40)).starts_with("much"));
        let told = tell(&Facts::default());
        assert!(told.iter().all(|fact| fact.value.is_none()), "{told:?}");
        assert_eq!(told.len(), 10);
    }
}
