//! The `PowerControl` driver against a control plane that answers, answers rubbish, late or not at all, and dies.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use davy_decision::action::Outcome;
use davy_decision::order::Verb;
use davy_decision::time::Span;
use davy_detector::action::driver::{Answer, Driver};
use davy_detector::action::power_control::PowerControl;
use davy_detector::desk::system_clock;
use davy_proto::v1;
use davy_proto::v1::power_control_server::PowerControlServer;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

use super::support::{Does, KEY, Receiver, nobody, order};

const MINUTE: Span = Span::minutes(1);

/// What the control plane does with whatever comes.
#[derive(Clone)]
enum Answers {
    Outcome(i32, String),
    Status(Code),
    Hangs,
}

fn outcome(outcome: v1::ActionOutcome) -> Answers {
    Answers::Outcome(outcome.into(), "said".to_owned())
}

/// What came: the procedure's name, and the request.
type Came = Vec<(&'static str, v1::ActionRequest)>;

#[derive(Clone)]
struct Control {
    answers: Arc<Mutex<Answers>>,
    came: Arc<Mutex<Came>>,
    queries: Arc<Mutex<Vec<String>>>,
}

impl Control {
    async fn answer(&self) -> Result<Response<v1::ActionReply>, Status> {
        let answers = self.answers.lock().unwrap().clone();
        match answers {
            Answers::Outcome(outcome, detail) => {
                Ok(Response::new(v1::ActionReply { outcome, detail }))
            }
            Answers::Status(code) => Err(Status::new(code, "no")),
            Answers::Hangs => std::future::pending().await,
        }
    }
}

macro_rules! procedures {
    ($($name:ident)*) => {
        #[tonic::async_trait]
        impl v1::power_control_server::PowerControl for Control {
            $(
                async fn $name(
                    &self,
                    request: Request<v1::ActionRequest>,
                ) -> Result<Response<v1::ActionReply>, Status> {
                    self.came.lock().unwrap().push((stringify!($name), request.into_inner()));
                    self.answer().await
                }
            )*

            async fn query(
                &self,
                request: Request<v1::QueryRequest>,
            ) -> Result<Response<v1::ActionReply>, Status> {
                self.queries.lock().unwrap().push(request.into_inner().key);
                self.answer().await
            }
        }
    };
}

procedures!(notify withdraw_notice throttle unthrottle power_down power_up lock unlock message page);

/// A control plane with a runtime of its own, so that its end takes its connections with it.
struct Running {
    control: Control,
    address: std::net::SocketAddr,
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Running {
    async fn start(answers: Answers) -> Self {
        let control = Control {
            answers: Arc::new(Mutex::new(answers)),
            came: Arc::default(),
            queries: Arc::default(),
        };
        Self::start_at(control, "127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(control: Control, address: std::net::SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let service = PowerControlServer::new(control.clone());
        let (listening, listens) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(address).await.unwrap();
            listening.send(listener.local_addr().unwrap()).unwrap();
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self {
            control,
            address: listens.await.unwrap(),
            runtime: Some(runtime),
        }
    }

    fn driver(&self) -> PowerControl {
        driver(&format!("http://{}", self.address))
    }

    fn came(&self) -> Came {
        self.control.came.lock().unwrap().clone()
    }
}

fn driver(url: &str) -> PowerControl {
    PowerControl::open(url, Duration::from_millis(1_000), system_clock()).unwrap()
}

fn is_doubtful(answer: &Answer) -> bool {
    answer.outcome == Outcome::Doubtful && !answer.detail.is_empty()
}

async fn performed(answers: Answers) -> Answer {
    let running = Running::start(answers).await;
    let answer = running
        .driver()
        .perform(&order(Verb::Throttle, MINUTE))
        .await;
    assert_eq!(running.came().len(), 1, "sent once");
    answer
}

async fn queried(answers: Answers) -> Answer {
    let running = Running::start(answers).await;
    let answer = running.driver().query(KEY).await;
    assert_eq!(*running.control.queries.lock().unwrap(), [KEY]);
    answer
}

#[tokio::test]
async fn every_verb_arrives_at_its_own_procedure_with_the_whole_order() {
    let running = Running::start(outcome(v1::ActionOutcome::Done)).await;
    let driver = running.driver();
    for verb in Verb::ALL {
        let order = order(verb, MINUTE);
        let answer = driver.perform(&order).await;
        assert_eq!(
            (answer.outcome, answer.detail.as_str()),
            (Outcome::Done, "said")
        );
        let (procedure, came) = running.came().pop().unwrap();
        assert_eq!(procedure, verb.name());
        let expected = v1::ActionRequest {
            key: order.key,
            account: "acct-1".to_owned(),
            droplets: vec!["d-1".to_owned(), "d-2".to_owned()],
            case: order.case,
            text: order.text,
            automated: true,
            released_unix_ms: order.released_at.unix_ms(),
            not_after_unix_ms: order.not_after.unix_ms(),
        };
        assert_eq!(came, expected);
    }
    assert_eq!(running.came().len(), 10);
}

#[tokio::test]
async fn only_a_clear_answer_is_more_than_a_doubt() {
    let why = "said".to_owned();
    let refused = performed(outcome(v1::ActionOutcome::Refused)).await;
    assert_eq!(refused.outcome, Outcome::Refused { why });
    for unclear in [
        outcome(v1::ActionOutcome::Unspecified),
        outcome(v1::ActionOutcome::UnderWay),
        outcome(v1::ActionOutcome::NeverSeen),
        Answers::Outcome(77, String::new()),
        Answers::Status(Code::NotFound),
        Answers::Status(Code::FailedPrecondition),
        Answers::Status(Code::AlreadyExists),
        Answers::Status(Code::PermissionDenied),
        Answers::Status(Code::Unavailable),
    ] {
        let answer = performed(unclear).await;
        assert!(is_doubtful(&answer), "{answer:?}");
    }
}

#[tokio::test]
async fn a_query_learns_what_became_of_an_order() {
    let answer = queried(outcome(v1::ActionOutcome::NeverSeen)).await;
    assert_eq!(answer.outcome, Outcome::NeverSeen);
    let answer = queried(outcome(v1::ActionOutcome::Done)).await;
    assert_eq!(answer.outcome, Outcome::Done);
    // A status may be of anything on the way: it is not the control plane's word that nothing came.
    assert!(is_doubtful(&queried(Answers::Status(Code::NotFound)).await));
    assert!(is_doubtful(
        &queried(outcome(v1::ActionOutcome::UnderWay)).await
    ));
}

#[tokio::test]
async fn a_control_planes_words_are_bounded_and_harmless() {
    let detail = format!("\u{1b}[2J{}", "a".repeat(100_000));
    let refused = v1::ActionOutcome::Refused.into();
    let answer = performed(Answers::Outcome(refused, detail)).await;
    let Outcome::Refused { why } = answer.outcome else {
        panic!("{answer:?}");
    };
    assert!(why.len() <= 300 && !why.contains('\u{1b}'), "{why:?}");
}

#[tokio::test]
async fn who_hangs_is_in_doubt_in_time() {
    let begun = Instant::now();
    let answer = performed(Answers::Hangs).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(1_900),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn an_order_is_not_awaited_or_sent_beyond_its_end() {
    let running = Running::start(Answers::Hangs).await;
    let driver = running.driver();
    let begun = Instant::now();
    let answer = driver.perform(&order(Verb::Lock, Span::ms(300))).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    assert!(
        begun.elapsed() < Duration::from_millis(800),
        "{:?}",
        begun.elapsed()
    );
    let answer = driver.perform(&order(Verb::Lock, Span::ZERO)).await;
    assert!(answer.detail.starts_with("not sent"), "{answer:?}");
    assert_eq!(running.came().len(), 1);
}

#[tokio::test]
async fn a_control_plane_that_dies_is_in_doubt_and_found_again_when_it_is_back() {
    let running = Running::start(outcome(v1::ActionOutcome::Done)).await;
    let driver = running.driver();
    assert_eq!(
        driver.perform(&order(Verb::Notify, MINUTE)).await.outcome,
        Outcome::Done
    );
    let (control, address) = (running.control.clone(), running.address);
    drop(running);
    // Its connections may live a moment longer.
    let begun = Instant::now();
    while !is_doubtful(&driver.query(KEY).await) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "its death is not noticed"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let again = Running::start_at(control, address).await;
    let answer = driver.query(KEY).await;
    assert_eq!(answer.outcome, Outcome::Done, "{answer:?}");
    drop(again);
}

#[tokio::test]
async fn one_who_speaks_no_grpc_closes_or_is_not_there_is_in_doubt() {
    let web = Receiver::start([Does::Writes("HTTP/1.1 200 OK\r\n\r\ndone".to_owned())]).await;
    let answer = driver(web.url.trim_end_matches("/davy"))
        .perform(&order(Verb::Lock, MINUTE))
        .await;
    assert!(is_doubtful(&answer), "{answer:?}");
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", closing.local_addr().unwrap());
    tokio::spawn(async move { while closing.accept().await.is_ok() {} });
    let answer = driver(&url).perform(&order(Verb::Lock, MINUTE)).await;
    assert!(is_doubtful(&answer), "{answer:?}");
    let answer = driver(&nobody().await)
        .perform(&order(Verb::Lock, MINUTE))
        .await;
    assert!(is_doubtful(&answer), "{answer:?}");
}
