//! Which agent of each host is connected: at most one stream per host.
//!
//! The same instance connecting again replaces its old stream (the old connection may be half dead). Of two
//! instances the one started later wins, whichever connects first: two agents on one host are an operator's
//! mistake or the two ends of a restart, and the later one is the one that is meant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use davy_proto::v1::Hello;
use tokio::sync::oneshot;
use tonic::Status;

/// Why a live stream has to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The detector is shutting down.
    Shutdown,
    /// The same agent instance has connected again.
    Reconnected,
    /// A later started instance of the same host has connected.
    Superseded {
        /// That instance.
        by: String,
    },
}

impl Stop {
    /// The status the ended stream gets.
    #[must_use]
    pub fn status(&self, host: &str) -> Status {
        match self {
            Self::Shutdown => Status::unavailable("the detector is stopping; connect again later"),
            Self::Reconnected => Status::aborted(format!(
                "this agent of host {host:?} has connected again; only its newest stream is served"
            )),
            Self::Superseded { by } => Status::already_exists(format!(
                "a later started agent (instance {by}) of host {host:?} is connected; run only one agent per host"
            )),
        }
    }
}

struct Stream {
    id: u64,
    instance: String,
    started_unix_ns: u64,
    stop: oneshot::Sender<Stop>,
}

#[derive(Default)]
struct Streams {
    by_host: HashMap<String, Stream>,
    last_id: u64,
    closed: bool,
}

/// The streams served now.
#[derive(Clone, Default)]
pub struct Live {
    streams: Arc<Mutex<Streams>>,
}

/// A stream's place in [`Live`]; given up on drop.
pub struct Place {
    live: Live,
    host: String,
    id: u64,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the host's place for the agent of `hello`, and says through the receiver when it has to leave it.
    ///
    /// # Errors
    /// `ALREADY_EXISTS` while another instance, not started earlier, is connected; `UNAVAILABLE` after [`Live::close`].
    pub fn enter(&self, hello: &Hello) -> Result<(Place, oneshot::Receiver<Stop>), Status> {
        let mut streams = self.lock();
        if streams.closed {
            return Err(Stop::Shutdown.status(&hello.host));
        }
        if let Some(other) = streams.by_host.get(&hello.host)
            && other.instance != hello.instance
            && other.started_unix_ns >= hello.started_unix_ns
        {
            return Err(Stop::Superseded {
                by: other.instance.clone(),
            }
            .status(&hello.host));
        }
        streams.last_id += 1;
        let id = streams.last_id;
        let (stop, stopped) = oneshot::channel();
        let stream = Stream {
            id,
            instance: hello.instance.clone(),
            started_unix_ns: hello.started_unix_ns,
            stop,
        };
        if let Some(old) = streams.by_host.insert(hello.host.clone(), stream) {
            let why = if old.instance == hello.instance {
                Stop::Reconnected
            } else {
                Stop::Superseded {
                    by: hello.instance.clone(),
                }
            };
            // The old stream may have ended by itself meanwhile: then nobody listens, and nobody has to.
            let _ = old.stop.send(why);
        }
        Ok((
            Place {
                live: self.clone(),
                host: hello.host.clone(),
                id,
            },
            stopped,
        ))
    }

    /// The instance connected for `host`, if any.
    #[must_use]
    pub fn instance(&self, host: &str) -> Option<String> {
        self.lock()
            .by_host
            .get(host)
            .map(|stream| stream.instance.clone())
    }

    /// How many hosts are connected.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.lock().by_host.len()
    }

    /// Ends every stream and lets no further one in.
    pub fn close(&self) {
        let mut streams = self.lock();
        streams.closed = true;
        for (_, stream) in streams.by_host.drain() {
            let _ = stream.stop.send(Stop::Shutdown);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.live.lock();
        if streams
            .by_host
            .get(&self.host)
            .is_some_and(|stream| stream.id == self.id)
        {
            streams.by_host.remove(&self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(instance: &str, started_unix_ns: u64) -> Hello {
        Hello {
            host: "h1".into(),
            instance: instance.into(),
            started_unix_ns,
            ..Hello::default()
        }
    }

    #[test]
    fn a_place_is_free_again_after_drop() {
        let live = Live::default();
        let (place, _stopped) = live.enter(&hello("a", 1)).unwrap();
        assert_eq!(live.instance("h1").as_deref(), Some("a"));
        drop(place);
        assert_eq!(live.hosts(), 0);
        assert!(live.enter(&hello("b", 0)).is_ok());
    }

    #[test]
    fn the_later_started_instance_wins_in_either_order() {
        let live = Live::default();
        let (old, mut old_stopped) = live.enter(&hello("old", 1)).unwrap();
        let (_new, mut new_stopped) = live.enter(&hello("new", 2)).unwrap();
        assert_eq!(
            old_stopped.try_recv().unwrap(),
            Stop::Superseded { by: "new".into() }
        );
        // The loser's place is gone already; dropping it must not free the winner's.
        drop(old);
        assert_eq!(live.instance("h1").as_deref(), Some("new"));
        let refused = live.enter(&hello("old", 1)).err().unwrap();
        assert_eq!(refused.code(), tonic::Code::AlreadyExists);
        assert!(
            refused.message().contains("run only one agent per host"),
            "{refused}"
        );
        assert!(new_stopped.try_recv().is_err());
    }

    #[test]
    fn the_same_instance_replaces_its_stream() {
        let live = Live::default();
        let (_first, mut first_stopped) = live.enter(&hello("a", 1)).unwrap();
        let (_second, _stopped) = live.enter(&hello("a", 1)).unwrap();
        assert_eq!(first_stopped.try_recv().unwrap(), Stop::Reconnected);
        assert_eq!(live.hosts(), 1);
    }

    #[test]
    fn nobody_enters_after_close() {
        let live = Live::default();
        let (_place, mut stopped) = live.enter(&hello("a", 1)).unwrap();
        live.close();
        assert_eq!(stopped.try_recv().unwrap(), Stop::Shutdown);
        assert_eq!(
            live.enter(&hello("a", 1)).err().unwrap().code(),
            tonic::Code::Unavailable
        );
    }
}
