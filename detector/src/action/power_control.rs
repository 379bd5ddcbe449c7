//! The provider's `PowerControl` over gRPC: see `proto/davy/v1/power_control.proto` for what it promises and must do.
//!
//! One call per order, never repeated here: what is in doubt is queried. The order's own end is the call's deadline, and nothing is sent
//! after it is to have left. Only an answer that says so is a refusal: a status may come from anything on the way, and says nothing about the order.

use std::time::Duration;

use davy_decision::{
    account::DropletId,
    action::Outcome,
    order::{Order, Verb},
};
use davy_proto::v1;
use davy_proto::v1::power_control_client::PowerControlClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::driver::{Answer, Driver, time_left, words};
use crate::account::directory::{BadUrl, lazy_channel, said};
use crate::desk::Clock;

/// How long connecting may take. What waits for a connection has not left yet, and the kill switch is to stop it within a second of
/// its release ([`davy_decision::order::LEAVES_WITHIN`]); the engine takes the other half.
const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone)]
pub struct PowerControl {
    client: PowerControlClient<Channel>,
    timeout: Duration,
    clock: Clock,
}

impl PowerControl {
    /// Of the control plane at `url` (`http://HOST:PORT`), each request answered within `timeout`.
    ///
    /// # Errors
    /// If the URL is none.
    pub fn open(url: &str, timeout: Duration, clock: Clock) -> Result<Self, BadUrl> {
        Ok(Self {
            client: PowerControlClient::new(lazy_channel(
                url,
                CONNECT_WITHIN.min(timeout),
                timeout,
            )?),
            timeout,
            clock,
        })
    }
}

/// What an answer says. Whatever is not clear is in doubt.
fn understood(answer: Result<Response<v1::ActionReply>, Status>, asked: bool) -> Answer {
    let v1::ActionReply { outcome, detail } = match answer {
        Ok(answer) => answer.into_inner(),
        Err(status) => return Answer::doubtful(words(&said(&status))),
    };
    let detail = words(&detail);
    let outcome = match v1::ActionOutcome::try_from(outcome) {
        Ok(v1::ActionOutcome::Done) => Outcome::Done,
        Ok(v1::ActionOutcome::Refused) => return Answer::refused(detail),
        // Only a query can find that something never came.
        Ok(v1::ActionOutcome::NeverSeen) if asked => Outcome::NeverSeen,
        Ok(v1::ActionOutcome::UnderWay) => {
            return Answer::doubtful(format!("it is under way: {detail}"));
        }
        Ok(v1::ActionOutcome::NeverSeen | v1::ActionOutcome::Unspecified) | Err(_) => {
            return Answer::doubtful(format!("outcome {outcome} is not understood: {detail}"));
        }
    };
    Answer { outcome, detail }
}

#[tonic::async_trait]
impl Driver for PowerControl {
    fn name(&self) -> &'static str {
        "power control"
    }

    async fn perform(&self, order: &Order) -> Answer {
        let now = (self.clock)();
        let (Some(_), Some(timeout)) = (
            time_left(order.leaves_by(), now, self.timeout),
            time_left(order.not_after, now, self.timeout),
        ) else {
            return Answer::too_late(order);
        };
        let mut request = Request::new(v1::ActionRequest {
            key: order.key.clone(),
            account: order.account.to_string(),
            droplets: order.droplets.iter().map(DropletId::to_string).collect(),
            case: order.case.clone(),
            text: order.text.clone(),
            automated: order.automated,
            released_unix_ms: order.released_at.unix_ms(),
            not_after_unix_ms: order.not_after.unix_ms(),
        });
        request.set_timeout(timeout);
        let mut client = self.client.clone();
        let answer = match order.verb {
            Verb::Notify => client.notify(request).await,
            Verb::WithdrawNotice => client.withdraw_notice(request).await,
            Verb::Throttle => client.throttle(request).await,
            Verb::Unthrottle => client.unthrottle(request).await,
            Verb::PowerDown => client.power_down(request).await,
            Verb::PowerUp => client.power_up(request).await,
            Verb::Lock => client.lock(request).await,
            Verb::Unlock => client.unlock(request).await,
            Verb::Message => client.message(request).await,
            Verb::Page => client.page(request).await,
        };
        understood(answer, false)
    }

    async fn query(&self, key: &str) -> Answer {
        let key = key.to_owned();
        let answer = self.client.clone().query(v1::QueryRequest { key }).await;
        understood(answer, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(outcome: i32) -> Result<Response<v1::ActionReply>, Status> {
        Ok(Response::new(v1::ActionReply {
            outcome,
            detail: "said".to_owned(),
        }))
    }

    #[test]
    fn what_is_not_clear_is_in_doubt() {
        let doubtful = |answer, asked| understood(answer, asked).outcome == Outcome::Doubtful;
        assert!(doubtful(Err(Status::internal("broken")), false));
        assert!(doubtful(Err(Status::unavailable("gone")), true));
        assert!(doubtful(reply(0), false) && doubtful(reply(99), true));
        assert!(doubtful(reply(v1::ActionOutcome::UnderWay.into()), true));
        assert!(doubtful(reply(v1::ActionOutcome::NeverSeen.into()), false));
        let never = understood(reply(v1::ActionOutcome::NeverSeen.into()), true);
        assert_eq!(never.outcome, Outcome::NeverSeen);
        let done = understood(reply(v1::ActionOutcome::Done.into()), false);
        assert_eq!(done.outcome, Outcome::Done);
    }
}
