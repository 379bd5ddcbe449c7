//! Golden outputs of cases.

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn before(seconds: u64) -> u64 {
    NOW - seconds * 1_000
}

fn waiting() -> v1::CaseSummary {
    v1::CaseSummary {
        account: "acct-4711".into(),
        number: 2,
        episode: 3,
        state: "claimed".into(),
        claimed_by: Some("ann".into()),
        opened_at_unix_ms: before(7_300),
        state_since_unix_ms: Some(before(300)),
        locked: true,
        waiting_since_unix_ms: Some(before(1_500)),
        first_answer_due_unix_ms: Some(before(600)),
        paged: true,
        appealed_at_unix_ms: Some(before(1_500)),
        opinions: 0,
        ..v1::CaseSummary::default()
    }
}

fn open() -> v1::CaseSummary {
    v1::CaseSummary {
        account: "acct-9".into(),
        number: 1,
        state: "open".into(),
        opened_at_unix_ms: before(60),
        waiting_since_unix_ms: Some(before(60)),
        first_answer_due_unix_ms: Some(NOW + 840_000),
        ..v1::CaseSummary::default()
    }
}

fn decided() -> v1::CaseSummary {
    v1::CaseSummary {
        account: "acct-12".into(),
        number: 4,
        state: "decided".into(),
        ruling: Some("legitimate".into()),
        opened_at_unix_ms: before(200_000),
        ..v1::CaseSummary::default()
    }
}

fn queue() -> v1::ListCasesResponse {
    v1::ListCasesResponse {
        cases: vec![waiting(), open(), decided()],
        more: false,
    }
}

fn shown() -> v1::GetCaseResponse {
    v1::GetCaseResponse {
        case: Some(waiting()),
        at_unix_ms: NOW,
        level: Some("mining".into()),
        episode_since_unix_ms: Some(before(9_000)),
        mining_ms: Some(4_500_000),
        suspect_ms: Some(4_800_000),
        droplets: vec![v1::DropletReview {
            droplet: "3164444".into(),
            host: "hv-ams3-0117".into(),
            level: "mining".into(),
            classes: vec!["fp_rounding".into(), "register_randomness".into()],
            reasons: vec!["fp_rounding concluded: 112, 104, 81 and 87 samples in the rounding modes 0 to 3, where ordinary software stays in mode 0".into()],
            mining_ms: 4_500_000,
            suspect_ms: 4_800_000,
            cpu_percent: 398,
            neighbours_wait_percent: Some(31),
            harm: "much: droplets beside it waited behind it for 31 % of the window".into(),
            to_unix_ms: before(20),
            ..v1::DropletReview::default()
        }],
        comparisons: vec![
            v1::Comparison {
                what: "CPU of droplet 3164444".into(),
                usually: "12 % of one CPU over 4000 windows before the episode".into(),
                now: "398 % (no evidence by itself)".into(),
                unusual: Some(true),
            },
            v1::Comparison {
                what: "spending in a month".into(),
                usually: "no invoice yet, which is neither good nor bad".into(),
                now: "run rate 400.00".into(),
                unusual: None,
            },
        ],
        facts: vec![
            v1::Fact {
                name: "run_rate".into(),
                value: Some("400.00 a month".into()),
                as_of_unix_ms: Some(before(90)),
            },
            v1::Fact {
                name: "vouched".into(),
                ..v1::Fact::default()
            },
        ],
        links: vec![v1::Link {
            account: "acct-3".into(),
            by: "ssh_key".into(),
            note: String::new(),
        }],
        safeties: vec![
            v1::SafetyLooked {
                name: "kill_switch".into(),
                in_force: false,
                why: "automation is not stopped".into(),
            },
            v1::SafetyLooked {
                name: "open_conversation".into(),
                in_force: true,
                why: "the customer wrote and waits for a person (25 min)".into(),
            },
        ],
        decisions: vec![v1::DecisionShown {
            number: 7,
            at_unix_ms: before(7_200),
            steps: vec!["notify".into(), "throttle".into()],
            policies: vec!["mining:throttle-the-new".into()],
            reasons: vec!["mining for 10 min in this episode".into()],
            policy: String::new(),
        }],
        actions: vec![v1::ActionShown {
            key: "acct-4711/3/throttle/0".into(),
            step: "throttle".into(),
            by: "davy (decision 7)".into(),
            planned_at_unix_ms: before(7_200),
            ends_at_unix_ms: Some(NOW + 79_200_000),
            state: "done".into(),
            droplets: vec!["3164444".into()],
            ..v1::ActionShown::default()
        }],
        messages: vec![v1::MessageShown {
            at_unix_ms: before(1_500),
            from: "customer (ticket)".into(),
            text: "We render a film.\nPlease turn it on again\u{1b}[2J!".into(),
        }],
        letters: vec![v1::LetterShown {
            number: 1,
            to: "on_call".into(),
            by: "davy".into(),
            written_at_unix_ms: before(600),
            state: "refused".into(),
            text: "The customer of case acct-4711/2 has waited for a person.".into(),
        }],
        review_wanted: true,
        ticket: Some("The CPU of these droplets is capped: 3164444.".into()),
        step_back_due_unix_ms: Some(NOW + 5_700_000),
        guideline: "docs/review-guideline.md".into(),
        ..v1::GetCaseResponse::default()
    }
}

fn fits(text: &str, width: usize) {
    for line in text.lines() {
        let chars = line.chars().count();
        assert!(chars <= width, "{chars} > {width}: {line}");
    }
}

#[track_caller]
fn golden(text: &str, expected: &str) {
    assert_eq!(
        text,
        expected.trim_start_matches('\n'),
        "the output was:\n{text}"
    );
}

#[test]
fn the_queue_at_120_columns() {
    let text = list_of(&queue(), NOW, Some(120));
    fits(&text, 120);
    golden(
        &text,
        r"
 CASE         STATE                LOCKED  CUSTOMER                             OPINIONS         OPENED
 acct-4711/2  claimed by ann       yes     waits 25 min, answer overdue, paged  review wanted   2 h ago
 acct-9/1     open                 -       waits 60 s, answer due in 14 min     -              60 s ago
 acct-12/4    decided: legitimate  -       -                                    -               2 d ago

3 cases: 2 open, 1 locked, 2 waiting customers, 1 overdue
",
    );
}

#[test]
fn the_queue_at_80_columns() {
    let text = list_of(&queue(), NOW, Some(80));
    fits(&text, 80);
    golden(
        &text,
        r"
 CASE         STATE                LOCKED  CUSTOMER               OPINIONS
 acct-4711/2  claimed by ann       yes     waits 25 min, answer   review wanted
                                           overdue, paged
 acct-9/1     open                 -       waits 60 s, answer     -
                                           due in 14 min
 acct-12/4    decided: legitimate  -       -                      -

3 cases: 2 open, 1 locked, 2 waiting customers, 1 overdue
",
    );
}

#[test]
fn a_case_at_120_columns() {
    let text = case(&shown(), Some(120));
    fits(&text, 120);
    golden(
        &text,
        r#"
 Case        acct-4711/2
 State       claimed by ann
 Opened      2 h ago
 Locked      yes
 Customer    waits 25 min, answer overdue, paged
 Steps back  in 95 min: locks and power-downs are lifted, unless a person decides
 Appealed    25 min ago
 Evidence    mining; in the episode mining for 1 h 15 min, suspect for 1 h 20 min

Evidence
 DROPLET  HOST          VERDICT  CLASSES                               MINING     SUSPECT    CPU      SEEN
 3164444  hv-ams3-0117  mining   fp_rounding, register_randomness  1 h 15 min  1 h 20 min  398 %  20 s ago
  3164444: why
  - fp_rounding concluded: 112, 104, 81 and 87 samples in the rounding modes 0 to 3, where ordinary software stays in
  mode 0
  3164444: harm to neighbours: much: droplets beside it waited behind it for 31 % of the window

Usual and unusual
 WHAT                    USUALLY                                        NOW                            UNUSUAL
 CPU of droplet 3164444  12 % of one CPU over 4000 windows before the   398 % (no evidence by itself)  yes
                         episode
 spending in a month     no invoice yet, which is neither good nor bad  run rate 400.00                cannot tell

Facts
 FACT      VALUE              AS OF
 run_rate  400.00 a month  90 s ago
 vouched   not known              -

Links to other accounts (context only, never a justification)
 ACCOUNT  SHARES   NOTE
 acct-3   ssh_key  -

Safeties now
 SAFETY             IN FORCE  WHY
 open_conversation  yes       the customer wrote and waits for a person (25 min)
 kill_switch        no        automation is not stopped

Decisions
 NUMBER     WHEN  STEPS             POLICIES
      7  2 h ago  notify, throttle  mining:throttle-the-new
  Reasons of number 7:
  - mining for 10 min in this episode

Actions
 ACTION    BY                 PLANNED     ENDS  STATE  DROPLETS
 throttle  davy (decision 7)  2 h ago  in 22 h  done   3164444

Opinions
  Each reviewer of an appeal judges alone: what another one may have found and done is shown once yours is in.

Messages
  customer (ticket), 25 min ago:
  │ We render a film.
  │ Please turn it on again�[2J!

Letters
  to on-call, by davy, 10 min ago: refused
  │ The customer of case acct-4711/2 has waited for a person.

The customer's ticket
  │ The CPU of these droplets is capped: 3164444.

How to judge: docs/review-guideline.md
"#,
    );
}

#[test]
fn a_case_at_80_columns() {
    let text = case(&shown(), Some(80));
    fits(&text, 80);
    golden(
        &text,
        r#"
 Case        acct-4711/2
 State       claimed by ann
 Opened      2 h ago
 Locked      yes
 Customer    waits 25 min, answer overdue, paged
 Steps back  in 95 min: locks and power-downs are lifted, unless a person
             decides
 Appealed    25 min ago
 Evidence    mining; in the episode mining for 1 h 15 min, suspect for 1 h 20
             min

Evidence
 DROPLET  VERDICT  CLASSES                               MINING    CPU
 3164444  mining   fp_rounding, register_randomness  1 h 15 min  398 %
  3164444: why
  - fp_rounding concluded: 112, 104, 81 and 87 samples in the rounding modes 0
  to 3, where ordinary software stays in mode 0
  3164444: harm to neighbours: much: droplets beside it waited behind it for 31
  % of the window

Usual and unusual
 WHAT                   USUALLY               NOW                   UNUSUAL
 CPU of droplet         12 % of one CPU over  398 % (no evidence    yes
 3164444                4000 windows before   by itself)
                        the episode
 spending in a month    no invoice yet,       run rate 400.00       cannot tell
                        which is neither
                        good nor bad

Facts
 FACT      VALUE              AS OF
 run_rate  400.00 a month  90 s ago
 vouched   not known              -

Links to other accounts (context only, never a justification)
 ACCOUNT  SHARES   NOTE
 acct-3   ssh_key  -

Safeties now
 SAFETY             IN FORCE  WHY
 open_conversation  yes       the customer wrote and waits for a person (25
                              min)
 kill_switch        no        automation is not stopped

Decisions
 NUMBER     WHEN  STEPS             POLICIES
      7  2 h ago  notify, throttle  mining:throttle-the-new
  Reasons of number 7:
  - mining for 10 min in this episode

Actions
 ACTION    BY                 PLANNED     ENDS  STATE  DROPLETS
 throttle  davy (decision 7)  2 h ago  in 22 h  done   3164444

Opinions
  Each reviewer of an appeal judges alone: what another one may have found and
  done is shown once yours is in.

Messages
  customer (ticket), 25 min ago:
  │ We render a film.
  │ Please turn it on again�[2J!

Letters
  to on-call, by davy, 10 min ago: refused
  │ The customer of case acct-4711/2 has waited for a person.

The customer's ticket
  │ The CPU of these droplets is capped: 3164444.

How to judge: docs/review-guideline.md
"#,
    );
}

#[test]
fn an_empty_queue_says_so() {
    let answer = v1::ListCasesResponse::default();
    assert_eq!(list_of(&answer, NOW, None), "No case is open.\n");
}
