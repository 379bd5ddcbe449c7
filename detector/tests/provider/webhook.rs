//! The webhook driver against a receiver that answers, answers rubbish, twice, late or not at all.

use std::time::{Duration, Instant};

use davy_decision::action::Outcome;
use davy_decision::order::{Order, Verb};
use davy_decision::time::{Span, Time};
use davy_detector::action::driver::{Answer, Driver};
use davy_detector::action::webhook::Webhook;
use davy_detector::desk::system_clock;
use davy_detector::signature::Secret;

use super::support::{Does, KEY, Receiver, http, nobody, now, order, released, says};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const DONE: &str = r#"{"outcome":"done","detail":"capped"}"#;
const MINUTE: Span = Span::minutes(1);

fn driver(url: &str) -> Webhook {
    let timeout = Duration::from_millis(1_000);
    Webhook::new(
        url.to_owned(),
        Secret::new(SECRET),
        timeout,
        3,
        system_clock(),
    )
}

/// What an order is answered with by a receiver with this script, and what came there.
async fn performed(script: Vec<Does>) -> (Answer, Receiver) {
    let receiver = Receiver::start(script).await;
    let answer = driver(&receiver.url)
        .perform(&order(Verb::Throttle, MINUTE))
        .await;
    (answer, receiver)
}

async fn queried(script: Vec<Does>) -> (Answer, Receiver) {
    let receiver = Receiver::start(script).await;
    let answer = driver(&receiver.url).query(KEY).await;
    (answer, receiver)
}

fn is_doubtful(answer: &Answer) -> bool {
    answer.outcome == Outcome::Doubtful && !answer.detail.is_empty()
}

#[tokio::test]
async fn an_order_arrives_whole_signed_and_under_its_key() {
    let receiver = Receiver::start([says(200, DONE)]).await;
    let order = order(Verb::PowerDown, MINUTE);
    let answer = driver(&receiver.url).perform(&order).await;
    assert_eq!(answer.outcome, Outcome::Done);
    assert_eq!(answer.detail, "capped");
    let came = receiver.came();
    assert_eq!(came.len(), 1);
    let arrived: Order = serde_json::from_str(&came[0].body).unwrap();
    assert_eq!(arrived, order);
    assert_eq!(came[0].header("idempotency-key"), Some(KEY));
    let (timestamp, signature) = (
        came[0].header("davy-timestamp"),
        came[0].header("davy-signature"),
    );
    let secret = Secret::new(SECRET);
    assert_eq!(
        secret.verify(timestamp, signature, came[0].body.as_bytes(), now()),
        Ok(())
    );
    let other = Secret::new(b"another secret of the same length");
    assert!(
        other
            .verify(timestamp, signature, came[0].body.as_bytes(), now())
            .is_err()
    );
}

#[tokio::test]
async fn a_query_arrives_as_one_and_can_find_that_nothing_came() {
    let (answer, receiver) = queried(vec![says(200, r#"{"outcome":"never_seen"}"#)]).await;
    assert_eq!(answer.outcome, Outcome::NeverSeen);
    let came = receiver.came();
    assert_eq!(came[0].body, format!("{{\"query\":\"{KEY}\"}}"));
    assert!(came[0].header("davy-signature").is_some());
}

#[tokio::test]
async fn an_order_cannot_have_never_been_seen() {
    let (answer, _) = performed(vec![says(200, r#"{"outcome":"never_seen"}"#)]).await;
    assert!(is_doubtful(&answer), "{answer:?}");
}

#[tokio::test]
async fn what_is_refused_or_under_way_is_told_apart() {
    let (answer, _) = performed(vec![says(
        200,
        r#"{"outcome":"refused","detail":"no such droplet"}"#,
    )])
    .await;
    let why = "no such droplet".to_owned();
    assert_eq!(answer.outcome, Outcome::Refused { why });
    let (answer, _) = performed(vec![says(202, r#"{"outcome":"under_way"}"#)]).await;
    assert!(is_doubtful(&answer), "{answer:?}");
}

#[tokio::test]
async fn rubbish_is_in_doubt_and_not_sent_again() {
    for rubbish in [
        http(200, ""),
        http(200, "<html>it works</html>"),
        http(200, r#"{"outcome":"maybe"}"#),
        http(200, r#"["done"]"#),
        http(200, r#"{"outcome":"done","outcome":"refused"}"#),
        http(204, ""),
        http(302, DONE),
    ] {
        let (answer, receiver) = performed(vec![Does::Writes(rubbish.clone())]).await;
        assert!(is_doubtful(&answer), "{rubbish}: {answer:?}");
        assert_eq!(receiver.came().len(), 1, "{rubbish}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_in_doubt() {
    let long = format!(
        r#"{{"outcome":"done","detail":"{}"}}"#,
        "a".repeat(100 << 10)
    );
    let (answer, _) = performed(vec![says(200, &long)]).await;
    assert!(is_doubtful(&answer), "{}", answer.detail.len());
}

#[tokio::test]
async fn a_receivers_words_are_bounded_and_harmless() {
    let detail = format!("\\u001b[2J{}", "a".repeat(10_000));
    let body = format!(r#"{{"outcome":"refused","detail":"{detail}"}}"#);
    let (answer, _) = performed(vec![says(200, &body)]).await;
    let Outcome::Refused { why } = answer.outcome else {
        panic!("{answer:?}");
    };
    assert!(why.len() <= 300 && !why.contains('\u{1b}'), "{why:?}");
}

#[tokio::test]
async fn what_was_not_taken_is_sent_again_under_the_same_key() {
    let script = [says(503, ""), says(429, ""), says(200, DONE)];
    let receiver = Receiver::start(script).await;
    let driver = driver(&receiver.url);
    let answer = driver.perform(&order(Verb::Unthrottle, MINUTE)).await;
    assert_eq!(answer.outcome, Outcome::Done);
    let came = receiver.came();
    assert_eq!(came.len(), 3);
    for again in &came {
        assert_eq!(again.header("idempotency-key"), Some(KEY));
        assert_eq!(again.body, came[0].body);
    }
}

/// In doubt is queried, not sent again.
#[tokio::test]
async fn what_may_have_been_taken_is_not_sent_again() {
    for does in [Does::Closes, says(500, ""), says(502, ""), says(504, "")] {
        let script = [does.clone(), says(200, DONE)];
        let receiver = Receiver::start(script).await;
        let driver = driver(&receiver.url);
        let answer = driver.perform(&order(Verb::Unthrottle, MINUTE)).await;
        assert!(is_doubtful(&answer), "{does:?}: {answer:?}");
        assert_eq!(receiver.came().len(), 1, "{does:?}");
        // Asking does nothing, and is repeated.
        let (answer, receiver) = queried(vec![does.clone(), says(200, DONE)]).await;
        assert_eq!(answer.outcome, Outcome::Done, "{does:?}");
        assert_eq!(receiver.came().len(), 2, "{does:?}");
    }
}

/// What stops automation stops it within a second of the release, whatever the receiver says.
#[tokio::test]
async fn an_automated_step_does_not_leave_after_its_second() {
    for verb in [Verb::Notify, Verb::Throttle, Verb::PowerDown, Verb::Lock] {
        let receiver = Receiver::start([says(503, "")]).await;
        let driver = driver(&receiver.url);
        let answer = driver.perform(&released(verb, Span::ms(1_001))).await;
        assert!(answer.detail.starts_with("not sent"), "{answer:?}");
        assert_eq!(receiver.came().len(), 0, "{verb}");
        let answer = driver.perform(&released(verb, Span::ms(850))).await;
        assert!(is_doubtful(&answer), "{answer:?}");
        assert!(receiver.came().len() <= 1, "{verb}");
    }
    // What a person asked for, and what lifts a step, may take its time.
    let receiver = Receiver::start([says(503, "")]).await;
    let driver = driver(&receiver.url);
    let by_person = Order {
        automated: false,
        ..released(Verb::Lock, Span::seconds(5))
    };
    for order in [by_person, released(Verb::Unlock, Span::seconds(5))] {
        assert!(is_doubtful(&driver.perform(&order).await));
    }
    assert_eq!(receiver.came().len(), 6);
}

#[tokio::test]
async fn attempts_end_and_then_it_is_in_doubt() {
    let receiver = Receiver::start([says(429, "")]).await;
    let driver = driver(&receiver.url);
    let answer = driver.perform(&order(Verb::Message, MINUTE)).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(answer.detail.contains("429"), "{}", answer.detail);
    assert_eq!(receiver.came().len(), 3);
}

#[tokio::test]
async fn a_client_error_refuses_an_order() {
    let (answer, receiver) = performed(vec![says(404, "no such\ndroplet")]).await;
    let why = "HTTP 404: no such droplet".to_owned();
    assert_eq!(answer.outcome, Outcome::Refused { why });
    assert_eq!(receiver.came().len(), 1);
}

#[tokio::test]
async fn a_client_error_to_a_copy_says_nothing_about_the_first_that_may_have_arrived() {
    let (answer, receiver) = performed(vec![says(503, ""), says(409, "exists already")]).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert_eq!(receiver.came().len(), 2);
}

#[tokio::test]
async fn a_client_error_to_a_query_says_nothing_about_the_order() {
    for status in [400, 401, 404] {
        let (answer, _) = queried(vec![says(status, "no")]).await;
        assert!(is_doubtful(&answer), "{answer:?}");
    }
}

#[tokio::test]
async fn who_hangs_is_in_doubt_in_time_and_nothing_is_sent_again() {
    let begun = Instant::now();
    let (answer, receiver) = performed(vec![Does::Hangs]).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(1_900),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(receiver.came().len(), 1);
}

#[tokio::test]
async fn an_order_is_not_awaited_or_sent_beyond_its_end() {
    let receiver = Receiver::start([Does::Late(Duration::from_millis(700), http(200, DONE))]).await;
    let driver = driver(&receiver.url);
    let begun = Instant::now();
    let answer = driver.perform(&order(Verb::Lock, Span::ms(300))).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(600),
        "{:?}",
        begun.elapsed()
    );
    let answer = driver.perform(&order(Verb::Lock, Span::ZERO)).await;
    assert!(answer.detail.starts_with("not sent"), "{answer:?}");
    assert_eq!(receiver.came().len(), 1);
}

#[tokio::test]
async fn no_attempt_is_made_after_the_orders_end() {
    let receiver = Receiver::start([says(503, "")]).await;
    let answer = driver(&receiver.url)
        .perform(&order(Verb::Lock, Span::ms(150)))
        .await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert_eq!(receiver.came().len(), 1);
}

#[tokio::test]
async fn a_late_answer_is_not_taken_for_the_next_orders() {
    let late = Does::Late(Duration::from_millis(1_300), http(200, DONE));
    let receiver =
        Receiver::start([late, says(200, r#"{"outcome":"refused","detail":"b"}"#)]).await;
    let driver = driver(&receiver.url);
    assert!(is_doubtful(
        &driver.perform(&order(Verb::Throttle, MINUTE)).await
    ));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let answer = driver.perform(&order(Verb::Lock, MINUTE)).await;
    let why = "b".to_owned();
    assert_eq!(answer.outcome, Outcome::Refused { why });
}

#[tokio::test]
async fn a_second_answer_to_one_order_is_not_taken_for_the_next_orders() {
    let refused = http(200, r#"{"outcome":"refused","detail":"stray"}"#);
    let twice = Does::Writes(http(200, DONE) + &refused);
    let receiver = Receiver::start([twice, says(200, DONE)]).await;
    let driver = driver(&receiver.url);
    let first = driver.perform(&order(Verb::Throttle, MINUTE)).await;
    assert_eq!(first.outcome, Outcome::Done);
    let second = driver.perform(&order(Verb::Notify, MINUTE)).await;
    assert_ne!(
        second.outcome,
        Outcome::Refused {
            why: "stray".to_owned()
        }
    );
}

#[tokio::test]
async fn where_nobody_listens_nothing_was_sent_and_it_is_in_doubt() {
    let answer = driver(&nobody().await)
        .perform(&order(Verb::Throttle, MINUTE))
        .await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(
        answer.detail.contains("nothing was sent"),
        "{}",
        answer.detail
    );
}

#[tokio::test]
async fn over_tls_one_who_does_not_speak_it_is_in_doubt() {
    let receiver = Receiver::start([says(200, DONE)]).await;
    let url = receiver.url.replace("http://", "https://");
    let answer = driver(&url)
        .perform(&order(Verb::Throttle, Span::seconds(1)))
        .await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(receiver.came().is_empty());
}

/// What a reader of docs/integration.md checks with openssl is what Davy signs.
#[test]
fn the_documents_example_is_signed_as_it_says() {
    let document = include_str!("../../../docs/integration.md");
    let (_, example) = document.split_once("secret=").unwrap();
    let (secret, rest) = example.split_once("\nbody='").unwrap();
    let (body, rest) = rest.split_once("'\n").unwrap();
    let (_, rest) = rest.split_once("%s.%s' ").unwrap();
    let (seconds, rest) = rest.split_once(' ').unwrap();
    let (_, rest) = rest.split_once("\n# ").unwrap();
    let (code, _) = rest.split_once('\n').unwrap();
    let at = Time::from_unix_ms(seconds.parse::<u64>().unwrap() * 1_000);
    let (timestamp, signature) = Secret::new(secret.as_bytes()).sign(at, body.as_bytes());
    assert_eq!(timestamp, seconds);
    assert_eq!(signature, format!("v1={code}"));
}
