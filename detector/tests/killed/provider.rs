//! The provider's side: an account directory, and a control plane that writes down whatever reaches it, in order.
//!
//! The control plane keeps the receiver's half of the contract (`docs/integration.md`): each key is done at most once, a repetition is
//! answered with what became of it, and what comes after `not_after` is refused.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard};

use davy_decision::account::{Cents, Droplet, DropletId, Facts, Known, Payments};
use davy_decision::time::{Span, Time};
use davy_proto::v1;
use davy_proto::v1::account_directory_server::{AccountDirectory, AccountDirectoryServer};
use davy_proto::v1::power_control_server::{PowerControl, PowerControlServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::support::now_ns;

/// The one account, and its one droplet.
pub(crate) const ACCOUNT: &str = "new";
pub(crate) const DROPLET: &str = "d-new";

/// What the control plane does with what comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Does it, and says so.
    #[default]
    Answers,
    /// Does it, and says nothing, nor to queries.
    Silent,
    /// Loses it, and says nothing, nor to queries.
    Deaf,
    /// Says "under way"; it is done when it has been asked about so often.
    Slow(u32),
}

/// What the directory says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Says {
    /// An account of yesterday that has paid nothing.
    #[default]
    New,
    /// The same, and high CPU is allowed.
    Allowed,
    /// That it cannot tell.
    Down,
}

/// All that a key may name, for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) verb: &'static str,
    account: String,
    droplets: Vec<String>,
    case: String,
    text: String,
    automated: bool,
}

/// Something that reached the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Order {
        key: String,
        asked: Asked,
    },
    /// None: it was not answered.
    Query {
        key: String,
        answer: Option<v1::ActionOutcome>,
    },
}

#[derive(Default)]
pub(crate) struct Book {
    pub(crate) came: Vec<Came>,
    /// Keys whose effect took place, in order, each as often as it did.
    pub(crate) effects: Vec<String>,
    pub(crate) manner: Manner,
    pub(crate) says: Says,
    known: BTreeMap<String, v1::ActionOutcome>,
}

impl Book {
    /// Whatever reached it under `key`, as orders.
    pub(crate) fn orders(&self, key: &str) -> Vec<&Asked> {
        let mut orders = Vec::new();
        for came in &self.came {
            if let Came::Order { key: held, asked } = came
                && held == key
            {
                orders.push(asked);
            }
        }
        orders
    }

    /// Whatever reached it under `key`, in order.
    pub(crate) fn about(&self, key: &str) -> Vec<&Came> {
        let named = |came: &&Came| match came {
            Came::Order { key: held, .. } | Came::Query { key: held, .. } => held == key,
        };
        self.came.iter().filter(named).collect()
    }

    /// The effects that took place, sorted.
    pub(crate) fn sorted(&self) -> Vec<String> {
        let mut effects = self.effects.clone();
        effects.sort();
        effects
    }

    /// The answers to queries about `key`.
    pub(crate) fn answers(&self, key: &str) -> Vec<Option<v1::ActionOutcome>> {
        let of_key = |came: &Came| match came {
            Came::Query { key: held, answer } if held == key => Some(*answer),
            _ => None,
        };
        self.came.iter().filter_map(of_key).collect()
    }

    pub(crate) fn took_effect(&self, key: &str) -> usize {
        self.effects.iter().filter(|held| *held == key).count()
    }

    fn take_effect(&mut self, key: &str) {
        self.effects.push(key.to_owned());
        let done = v1::ActionOutcome::Done;
        self.known.insert(key.to_owned(), done);
    }

    fn order(&mut self, verb: &'static str, request: v1::ActionRequest) -> Option<Reply> {
        let v1::ActionRequest {
            key,
            account,
            droplets,
            case,
            text,
            automated,
            released_unix_ms: _,
            not_after_unix_ms,
        } = request;
        let asked = Asked {
            verb,
            account,
            droplets,
            case,
            text,
            automated,
        };
        let came = Came::Order {
            key: key.clone(),
            asked,
        };
        self.came.push(came);
        if self.manner == Manner::Deaf {
            return None;
        }
        if !self.known.contains_key(&key) {
            let late = now_ns() / 1_000_000 > not_after_unix_ms;
            match self.manner {
                _ if late => {
                    let refused = v1::ActionOutcome::Refused;
                    self.known.insert(key.clone(), refused);
                }
                Manner::Slow(_) => {
                    let under_way = v1::ActionOutcome::UnderWay;
                    self.known.insert(key.clone(), under_way);
                }
                Manner::Answers | Manner::Silent | Manner::Deaf => self.take_effect(&key),
            }
        }
        let outcome = self.known[&key];
        (self.manner != Manner::Silent).then(|| reply(outcome))
    }

    fn query(&mut self, key: String) -> Option<Reply> {
        let answer = match self.manner {
            Manner::Silent | Manner::Deaf => None,
            Manner::Answers | Manner::Slow(_) => {
                let never = v1::ActionOutcome::NeverSeen;
                Some(self.known.get(&key).copied().unwrap_or(never))
            }
        };
        if answer == Some(v1::ActionOutcome::UnderWay) {
            match &mut self.manner {
                Manner::Slow(times @ 2..) => *times -= 1,
                _ => self.take_effect(&key),
            }
        }
        self.came.push(Came::Query { key, answer });
        answer.map(reply)
    }
}

type Reply = Result<Response<v1::ActionReply>, Status>;

fn reply(outcome: v1::ActionOutcome) -> Reply {
    Ok(Response::new(v1::ActionReply {
        outcome: outcome.into(),
        detail: "so says the book".to_owned(),
    }))
}

/// Both services of the provider, on loopback for as long as the test's runtime lives.
#[derive(Clone)]
pub(crate) struct Provider {
    book: Arc<Mutex<Book>>,
    pub(crate) url: String,
}

impl Provider {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let provider = Self {
            book: Arc::default(),
            url,
        };
        let server = tonic::transport::Server::builder()
            .add_service(AccountDirectoryServer::new(provider.clone()))
            .add_service(PowerControlServer::new(provider.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        provider
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }
}

fn facts(allowed: bool) -> Facts {
    let now = Time::from_unix_ns(now_ns());
    let since = now.before(Span::days(1));
    fn known<T>(value: T, as_of: Time) -> Option<Known<T>> {
        Some(Known { value, as_of })
    }
    let droplet = Droplet {
        created_at: since,
        vcpus: 1,
    };
    let droplets = BTreeMap::from([(DropletId::try_from(DROPLET).unwrap(), droplet)]);
    Facts {
        created_at: known(since, now),
        first_payment_at: known(None, now),
        first_droplet_at: known(Some(since), now),
        payments: known(Payments::default(), now),
        run_rate: known(Cents(5_000), now),
        credit: known(None, now),
        high_cpu_allowed: known(allowed, now),
        vouched: known(None, now),
        links: known(Vec::new(), now),
        droplets: known(droplets, now),
    }
}

#[tonic::async_trait]
impl AccountDirectory for Provider {
    async fn look_up_account(
        &self,
        request: Request<v1::LookUpAccountRequest>,
    ) -> Result<Response<v1::LookUpAccountResponse>, Status> {
        let account = request.into_inner().account;
        if account != ACCOUNT {
            return Err(Status::not_found("no such account"));
        }
        let says = self.book().says;
        if says == Says::Down {
            return Err(Status::unavailable("the directory is down"));
        }
        Ok(Response::new(v1::LookUpAccountResponse {
            account,
            facts: Some(davy_proto::accounts::on_wire(&facts(says == Says::Allowed))),
        }))
    }

    async fn find_droplet(
        &self,
        request: Request<v1::FindDropletRequest>,
    ) -> Result<Response<v1::FindDropletResponse>, Status> {
        match request.into_inner().droplet.as_str() {
            DROPLET => Ok(Response::new(v1::FindDropletResponse {
                account: ACCOUNT.to_owned(),
            })),
            _ => Err(Status::not_found("no such droplet")),
        }
    }
}

macro_rules! procedures {
    ($($name:ident)*) => {
        #[tonic::async_trait]
        impl PowerControl for Provider {
            $(
                async fn $name(&self, request: Request<v1::ActionRequest>) -> Reply {
                    let reply = self.book().order(stringify!($name), request.into_inner());
                    match reply {
                        Some(reply) => reply,
                        None => pending().await,
                    }
                }
            )*

            async fn query(&self, request: Request<v1::QueryRequest>) -> Reply {
                let reply = self.book().query(request.into_inner().key);
                match reply {
                    Some(reply) => reply,
                    None => pending().await,
                }
            }
        }
    };
}

procedures!(notify withdraw_notice throttle unthrottle power_down power_up lock unlock message page);
