//! An order, a clock, and an HTTP receiver that does as it is told and keeps what came.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use davy_decision::order::{Order, Verb};
use davy_decision::time::{Span, Time};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const KEY: &str = "acct-1/2/throttle/0";

pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time::from_unix_ms(u64::try_from(since.as_millis()).unwrap())
}

/// An order that ends after `lasts`.
pub(crate) fn order(verb: Verb, lasts: Span) -> Order {
    Order {
        key: KEY.to_owned(),
        account: "acct-1".try_into().unwrap(),
        verb,
        droplets: vec!["d-1".try_into().unwrap(), "d-2".try_into().unwrap()],
        case: "acct-1/1".to_owned(),
        text: "Ihr Droplet rechnet wie ein Miner. \"Warum?\"".to_owned(),
        automated: true,
        released_at: now(),
        not_after: now().after(lasts),
    }
}

/// One that was released `ago`.
pub(crate) fn released(verb: Verb, ago: Span) -> Order {
    Order {
        released_at: now().before(ago),
        ..order(verb, Span::minutes(1))
    }
}

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    /// Writes these bytes, and keeps the connection.
    Writes(String),
    /// Writes them after a while.
    Late(Duration, String),
    /// Closes the connection without a word.
    Closes,
    /// Says nothing, for ever.
    Hangs,
}

/// An answer over HTTP.
pub(crate) fn http(status: u16, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn says(status: u16, body: &str) -> Does {
    Does::Writes(http(status, body))
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Came {
    /// The value of a header, named in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

/// A receiver on loopback.
pub(crate) struct Receiver {
    pub(crate) url: String,
    came: Arc<Mutex<Vec<Came>>>,
}

impl Receiver {
    /// Does one thing after the other, and the last one for ever.
    pub(crate) async fn start(script: impl IntoIterator<Item = Does>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/davy", listener.local_addr().unwrap());
        let came: Arc<Mutex<Vec<Came>>> = Arc::default();
        let script: VecDeque<Does> = script.into_iter().collect();
        let (script, kept) = (Arc::new(Mutex::new(script)), Arc::clone(&came));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(attend(stream, Arc::clone(&script), Arc::clone(&kept)));
            }
        });
        Self { url, came }
    }

    pub(crate) fn came(&self) -> Vec<Came> {
        self.came.lock().unwrap().clone()
    }
}

fn next(script: &Mutex<VecDeque<Does>>) -> Does {
    let mut script = script.lock().unwrap();
    if script.len() > 1 {
        script.pop_front().unwrap()
    } else {
        script.front().expect("a script").clone()
    }
}

async fn attend(
    mut stream: TcpStream,
    script: Arc<Mutex<VecDeque<Does>>>,
    kept: Arc<Mutex<Vec<Came>>>,
) {
    while let Some(came) = read(&mut stream).await {
        kept.lock().unwrap().push(came);
        let text = match next(&script) {
            Does::Writes(text) => text,
            Does::Late(wait, text) => {
                tokio::time::sleep(wait).await;
                text
            }
            Does::Closes => return,
            Does::Hangs => std::future::pending().await,
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// One HTTP message; none at the connection's end.
async fn read(stream: &mut TcpStream) -> Option<Came> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut came = Came {
        head: String::from_utf8(bytes[..head].to_vec()).unwrap(),
        body: String::new(),
    };
    let length: usize = came
        .header("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    came.body = String::from_utf8(body).unwrap();
    Some(came)
}

/// Posts to a server, and gives its status and what it says.
pub(crate) async fn post(
    address: std::net::SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nhost: davy\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    // A server that has refused the head may not read the rest.
    let _ = stream.write_all(text.as_bytes()).await;
    let answer = read(&mut stream).await.expect("an answer");
    let status = answer.head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.body)
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
