//! What people do in a scenario: the same transitions that the services call.

use davy_decision::{
    case::{Finding, Opinion, Person},
    dossier::{Dossier, Event as Happened, Refusal},
    text::{Reason, ReasonError},
};

use super::event::{Act, Event, Opined, Outcome as Unlocked};
use super::timeline::{Entry, Kind};
use super::world::World;

impl World {
    /// A person acts.
    ///
    /// # Errors
    /// If it is refused and was not expected to be, or the other way round.
    pub(super) fn person(&mut self, event: &Event) -> Result<(), String> {
        let (Event::Claim(act)
        | Event::GiveBack(act)
        | Event::Answer(act)
        | Event::Unlock(act)
        | Event::AllowHighCpu(act)
        | Event::Throttle(act)
        | Event::Renew(act)
        | Event::Unthrottle(act)
        | Event::Opinion(act)
        | Event::Undo(act)
        | Event::Close(act)) = event
        else {
            return Ok(());
        };
        let account = &act.account;
        let mut dossier = self.dossier(account).clone();
        match self.try_act(&mut dossier, event, act) {
            Ok(events) if !act.refused => {
                if let (Some(case), Ok(reason)) = (&dossier.case, reason(act)) {
                    self.reasons.push((case.id.clone(), reason));
                }
                self.dossiers.insert(account.clone(), dossier);
                self.happened(account, &events);
                self.due.insert(account.clone(), self.at);
                Ok(())
            }
            Ok(_) => Err(format!(
                "{} was expected to be refused, and was not",
                act.by
            )),
            Err(why) if act.refused => {
                self.timeline.push(Entry {
                    at: self.at,
                    account: Some(account.clone()),
                    kind: Kind::Refused,
                    text: format!("{} is refused: {why}", act.by),
                    data: serde_json::Value::Null,
                });
                Ok(())
            }
            Err(why) => Err(format!(
                "{why} (say \"refused\": true if that is what is expected)"
            )),
        }
    }

    fn try_act(
        &self,
        dossier: &mut Dossier,
        event: &Event,
        act: &Act,
    ) -> Result<Vec<Happened>, String> {
        let (at, settings, by) = (self.at, &self.settings, Person(act.by.clone()));
        let words = |refusal: Refusal| refusal.to_string();
        let own = dossier.case.as_ref().map(|case| case.id.clone());
        let earlier: Vec<_> = (self.reasons.iter())
            .filter(|(case, _)| Some(case) != own.as_ref())
            .map(|(case, reason)| (case.to_string(), reason))
            .collect();
        let earlier = earlier
            .iter()
            .map(|(case, reason)| (case.as_str(), *reason));
        // As of the calls: a review that is wanted comes before anything else but these.
        let reviews = matches!(
            event,
            Event::Claim(_) | Event::Answer(_) | Event::Unlock(_) | Event::Opinion(_)
        );
        if !reviews {
            dossier.may_act(&by).map_err(words)?;
        }
        match event {
            Event::Claim(_) => dossier.claim(&by, act.take_over, at).map_err(words),
            Event::GiveBack(_) => dossier.give_back(&by).map_err(words),
            Event::Answer(_) => {
                let text = act.text.as_deref().unwrap_or_default();
                dossier.answer(&by, text, at).map_err(words)
            }
            Event::Unlock(_) => {
                let legitimate = act.outcome == Unlocked::Legitimate;
                let reason = act.text.as_ref().map(|_| reason(act)).transpose();
                let reason = reason.map_err(|error| error.to_string())?;
                dossier
                    .unlock(&by, legitimate, reason, earlier, settings, at)
                    .map_err(words)
            }
            Event::AllowHighCpu(_) if act.revoke => {
                dossier.disallow_high_cpu(&by, at).map_err(words)
            }
            Event::AllowHighCpu(_) => Ok(dossier.allow_high_cpu(&by, settings, at)),
            Event::Throttle(_) => {
                let reason = reason(act).map_err(|error| error.to_string())?;
                dossier.throttle(&by, &reason, settings, at).map_err(words)
            }
            Event::Renew(_) => {
                let reason = reason(act).map_err(|error| error.to_string())?;
                dossier.renew(&by, &reason, settings, at).map_err(words)
            }
            Event::Unthrottle(_) => dossier.unthrottle(&by, settings, at).map_err(words),
            Event::Opinion(_) => {
                let opinion = Opinion {
                    by,
                    at,
                    finding: match act.finding {
                        Some(Opined::Deny) => Finding::Deny,
                        Some(Opined::Unlock) => Finding::Unlock,
                        None => {
                            return Err(
                                "an opinion has a finding: \"deny\" or \"unlock\"".to_owned()
                            );
                        }
                    },
                    measure: act.measure,
                    reason: reason(act).map_err(|error| error.to_string())?,
                };
                dossier.opine(opinion, earlier, settings).map_err(words)
            }
            Event::Undo(_) => dossier.take_back(&by, settings, at).map_err(words),
            Event::Close(_) => dossier.close(at).map_err(words),
            _ => Ok(Vec::new()),
        }
    }
}

fn reason(act: &Act) -> Result<Reason, ReasonError> {
    act.text.clone().unwrap_or_default().try_into()
}
