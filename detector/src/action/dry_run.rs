//! The default driver: asks nothing of anybody, and records what it would have asked.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use davy_decision::{action::Outcome, order::Order};

use super::driver::{Answer, Driver};

/// Orders remembered; the earliest go first. The audit log has them all.
pub const ORDERS_MAX: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub struct DryRun {
    orders: Mutex<VecDeque<Order>>,
}

impl DryRun {
    /// What would have been asked, in order.
    #[must_use]
    pub fn orders(&self) -> Vec<Order> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        orders.iter().cloned().collect()
    }
}

#[tonic::async_trait]
impl Driver for DryRun {
    fn name(&self) -> &'static str {
        "dry run"
    }

    async fn perform(&self, order: &Order) -> Answer {
        tracing::info!(key = order.key, verb = %order.verb, account = %order.account, droplets = order.droplets.len(), "dry run: would have asked the control plane");
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if orders.len() >= ORDERS_MAX {
            orders.pop_front();
        }
        orders.push_back(order.clone());
        Answer {
            outcome: Outcome::Done,
            detail: "dry run: nothing was asked".to_owned(),
        }
    }

    async fn query(&self, key: &str) -> Answer {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = if orders.iter().any(|order| order.key == key) {
            Outcome::Done
        } else {
            Outcome::NeverSeen
        };
        Answer {
            outcome,
            detail: "dry run".to_owned(),
        }
    }
}
