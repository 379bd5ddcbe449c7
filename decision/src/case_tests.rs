//! Cases, step by step.

use super::*;

const T0: Time = Time::from_unix_ms(1_559_148_180_000);

fn person(name: &str) -> Person {
    Person(name.to_owned())
}

fn case() -> Case {
    let account = "acct-1".try_into().unwrap();
    Case::open(CaseId { account, number: 1 }, 1, T0)
}

fn said(from: Speaker, minutes: u64) -> Message {
    Message {
        at: T0.after(Span::minutes(minutes)),
        from,
        text: "hello".to_owned(),
    }
}

fn customer() -> Speaker {
    Speaker::Customer {
        channel: "ticket".to_owned(),
    }
}

fn opinion(by: &str, finding: Finding, text: &str) -> Opinion {
    Opinion {
        by: person(by),
        at: T0,
        finding,
        measure: (finding == Finding::Deny).then_some(Step::Lock),
        reason: text.to_owned().try_into().unwrap(),
    }
}

const ONE: &str =
    "Four droplets computed RandomX for a day and the card is reported stolen by its bank";
const TWO: &str =
    "I asked twice what runs there, the answers named a pool, and the payment bounced since";

const THREE: &str =
    "The same pool address stands in all five droplets that this account has made since noon";

#[test]
fn a_claimed_case_is_one_persons() {
    let mut case = case();
    case.claim(&person("ann"), false, T0).unwrap();
    assert_eq!(case.claim(&person("ann"), false, T0), Ok(()));
    let error = case
        .claim(&person("bob"), false, T0)
        .unwrap_err()
        .to_string();
    assert!(error.contains("claimed by ann"), "{error}");
    assert!(case.give_back(&person("bob")).is_err());
    case.give_back(&person("ann")).unwrap();
    assert_eq!(case.claim(&person("bob"), false, T0), Ok(()));
    assert_eq!(case.claim(&person("cid"), true, T0), Ok(()));
}

#[test]
fn the_customers_clock_runs_from_their_first_word_to_a_persons_answer() {
    let mut case = case();
    case.say(said(customer(), 1), false);
    case.say(said(customer(), 9), false);
    case.say(said(Speaker::Automation, 10), false);
    assert_eq!(case.waiting_since, Some(T0.after(Span::minutes(1))));
    let limit = Span::minutes(15);
    assert!(!case.page_due(T0.after(Span::minutes(16)), limit));
    assert!(case.page_due(T0.after(Span::minutes(17)), limit));
    let ann = Speaker::Person {
        person: person("ann"),
    };
    case.say(said(ann, 18), false);
    assert_eq!(case.waiting_since, None);
}

#[test]
fn a_denial_takes_two_people_with_two_texts() {
    let mut case = case();
    assert_eq!(case.opine(opinion("ann", Finding::Deny, ONE), []), Ok(None));
    let same = case.opine(opinion("ann", Finding::Deny, TWO), []);
    assert!(matches!(same, Err(CaseError::SamePerson { .. })));
    let copied = case.opine(opinion("bob", Finding::Deny, ONE), []);
    assert!(matches!(copied, Err(CaseError::Reason(_))));
    let template: Reason = TWO.to_owned().try_into().unwrap();
    let copied = case.opine(
        opinion("bob", Finding::Deny, TWO),
        [("case acct-9/1", &template)],
    );
    assert!(copied.unwrap_err().to_string().contains("acct-9/1"));
    assert!(case.is_open());
    assert_eq!(
        case.opine(opinion("bob", Finding::Deny, TWO), []),
        Ok(Some(Ruling::Denied))
    );
}

#[test]
fn opinions_that_differ_unlock() {
    let mut case = case();
    case.opine(opinion("ann", Finding::Deny, ONE), []).unwrap();
    let second = case.opine(opinion("bob", Finding::Unlock, TWO), []);
    assert_eq!(second, Ok(Some(Ruling::Unsure)));
}

#[test]
fn an_appealed_lock_gets_two_new_reviews_and_neither_sees_the_other() {
    let mut case = case();
    case.opine(opinion("ann", Finding::Deny, ONE), []).unwrap();
    case.say(said(customer(), 5), true);
    assert!(case.appealed_at.is_some() && case.opinions.is_empty());
    let error = case.opine(opinion("ann", Finding::Deny, TWO), []);
    assert!(matches!(error, Err(CaseError::NotIndependent { .. })));
    assert!(case.unlock(&person("cid"), Ruling::Unsure, T0).is_err());
    assert!(case.seal(true, T0));
    let first = case.opine(opinion("cid", Finding::Deny, THREE), []);
    assert_eq!(first, Ok(None), "one review does not deny");
    assert!(case.seen_by(&person("dan")).opinions.is_empty());
    assert_eq!(case.seen_by(&person("cid")).opinions.len(), 1);
    let second = case.opine(opinion("dan", Finding::Unlock, TWO), []);
    assert_eq!(second, Ok(Some(Ruling::Unsure)), "they differ");
    assert_eq!(case.seen_by(&person("eve")).opinions.len(), 2);
}

#[test]
fn a_first_review_that_unlocks_does_so_at_once_and_the_second_is_wanted_still() {
    let mut case = case();
    case.say(said(customer(), 5), true);
    assert!(case.seal(true, T0));
    let first = case.opine(opinion("cid", Finding::Unlock, ONE), []);
    assert_eq!(first, Ok(Some(Ruling::Unsure)));
    assert!(case.wants_review() && case.close(T0).is_err());
    assert!(case.seen_by(&person("dan")).opinions.is_empty());
    let second = case.opine(opinion("dan", Finding::Deny, TWO), []);
    assert_eq!(second, Ok(None), "it changes nothing");
    let unlocked = State::Decided {
        ruling: Ruling::Unsure,
        at: T0,
    };
    assert_eq!(case.state, unlocked);
    assert_eq!(case.close(T0), Ok(()));
}

#[test]
fn a_decision_is_taken_back_by_reopening() {
    let mut case = case();
    assert!(case.reopen(&person("ann"), T0).is_err());
    case.unlock(&person("ann"), Ruling::Unsure, T0).unwrap();
    assert_eq!(case.reopen(&person("bob"), T0), Ok(Ruling::Unsure));
    assert!(case.is_open());
}

#[test]
fn a_denial_says_what_follows() {
    let silent = Opinion {
        measure: None,
        ..opinion("ann", Finding::Deny, ONE)
    };
    assert_eq!(case().opine(silent, []), Err(CaseError::Measure));
}

#[test]
fn an_appeal_opens_a_decided_case_again() {
    let mut case = case();
    case.opine(opinion("ann", Finding::Deny, ONE), []).unwrap();
    case.opine(opinion("bob", Finding::Deny, TWO), []).unwrap();
    case.say(said(customer(), 5), true);
    assert_eq!(case.state, State::Open);
    assert_eq!(case.waiting_since, Some(T0.after(Span::minutes(5))));
}

#[test]
fn who_was_locked_comes_first_and_then_who_waits_longest() {
    let mut waiting = case();
    waiting.say(said(customer(), 1), false);
    let mut locked = case();
    locked.say(said(customer(), 30), true);
    let silent = case();
    assert!(locked.rank(true) < waiting.rank(false));
    assert!(waiting.rank(false) < silent.rank(false));
}

#[test]
fn only_a_decided_case_is_closed_and_a_closed_one_stays() {
    let mut case = case();
    assert!(case.close(T0).is_err());
    case.unlock(&person("ann"), Ruling::Legitimate, T0).unwrap();
    case.close(T0).unwrap();
    assert!(case.claim(&person("bob"), false, T0).is_err());
    assert!(case.opine(opinion("bob", Finding::Deny, ONE), []).is_err());
}

#[test]
fn a_customer_is_heard_and_answered_however_much_was_said() {
    let mut case = case();
    for _ in 0..MESSAGES_MAX {
        case.say(said(Speaker::Automation, 1), false);
    }
    let ann = Speaker::Person {
        person: person("ann"),
    };
    case.say(said(customer(), 2_000), true);
    assert_eq!(case.messages.len(), MESSAGES_MAX);
    assert!(case.appealed_at.is_some() && case.waiting_since.is_some());
    case.say(said(ann, 2_001), true);
    assert_eq!(case.messages.len(), MESSAGES_MAX);
    assert!(case.waiting_since.is_none());
}

#[test]
fn a_customer_who_speaks_of_a_decided_case_brings_it_back_to_the_queue() {
    let mut case = case();
    case.unlock(&person("ann"), Ruling::Unsure, T0).unwrap();
    case.say(said(customer(), 5), false);
    assert_eq!(case.state, State::Open);
    assert_eq!(case.claim(&person("bob"), false, T0), Ok(()));
}

#[test]
fn a_second_appeal_after_two_reviews_is_reviewed_by_others() {
    let mut case = case();
    case.say(said(customer(), 1), true);
    for (by, text) in [("ann", ONE), ("bob", TWO)] {
        case.opine(opinion(by, Finding::Deny, text), []).unwrap();
    }
    assert!(matches!(case.state, State::Decided { .. }));
    case.say(said(customer(), 60), true);
    assert_eq!(case.state, State::Open);
    assert!(matches!(
        case.opine(opinion("ann", Finding::Deny, THREE), []),
        Err(CaseError::NotIndependent { .. })
    ));
    let unlocked = case.opine(opinion("carol", Finding::Unlock, THREE), []);
    assert_eq!(unlocked, Ok(Some(Ruling::Unsure)));
}
