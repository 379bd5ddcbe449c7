//! `Inventory`: what is known about tenants and hosts, for `davyctl` and other tools.

use std::collections::HashMap;
use std::sync::Arc;

use davy_proto::v1;
use davy_proto::v1::inventory_server::Inventory;
use tonic::{Request, Response, Status};

use crate::ingest::live::Live;
use crate::metrics::Metrics;
use crate::store::{Host, Store, StoreError, Tenant};

/// History entries in an answer if the question does not say.
const HISTORY_DEFAULT: u32 = 60;
/// Most history entries in an answer.
const HISTORY_MAX: u32 = 8_640;
/// Most matches an error lists.
const MATCHES_SHOWN: usize = 10;

/// The `Inventory` service.
#[derive(Clone)]
pub struct InventoryService {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    live: Live,
}

impl InventoryService {
    /// A service that reads from `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>, live: Live) -> Self {
        Self {
            store,
            metrics,
            live,
        }
    }
}

fn status(error: &StoreError) -> Status {
    match error {
        StoreError::TooMany { .. } => Status::resource_exhausted(error.to_string()),
        _ => Status::unavailable(error.to_string()),
    }
}

fn droplet(tenant: Tenant) -> v1::Droplet {
    let Tenant {
        host,
        current,
        first_seen_unix_ns,
        last_seen_unix_ns,
        verdict_since_unix_ns,
        window_ns,
        planned,
    } = tenant;
    v1::Droplet {
        host,
        current: Some(current),
        first_seen_unix_ns,
        last_seen_unix_ns,
        verdict_since_unix_ns,
        window_ns,
        planned: planned.to_string(),
    }
}

/// The one tenant that is meant, or an error that says how to be clear.
fn only(mut matches: Vec<Tenant>, host: &str, tenant: &str) -> Result<Tenant, Status> {
    let place = if host.is_empty() {
        String::new()
    } else {
        format!(" on host {host:?}")
    };
    if matches.len() > 1 {
        let listed: Vec<String> = matches
            .iter()
            .take(MATCHES_SHOWN)
            .map(|one| {
                let name = if one.current.name.is_empty() {
                    ""
                } else {
                    &one.current.name
                };
                format!("{} {} {name}", one.host, one.current.key)
                    .trim_end()
                    .to_owned()
            })
            .collect();
        let more = if matches.len() > MATCHES_SHOWN {
            "; and more"
        } else {
            ""
        };
        return Err(Status::invalid_argument(format!(
            "{tenant:?} is not one tenant{place} but several: {}{more}. Give the host, or the tenant's key",
            listed.join("; ")
        )));
    }
    matches.pop().ok_or_else(|| {
        Status::not_found(format!(
            "no tenant{place} has the key, name or droplet id {tenant:?}"
        ))
    })
}

#[tonic::async_trait]
impl Inventory for InventoryService {
    async fn list_droplets(
        &self,
        request: Request<v1::ListDropletsRequest>,
    ) -> Result<Response<v1::ListDropletsResponse>, Status> {
        let v1::ListDropletsRequest { host, at_least } = request.into_inner();
        let at_least = v1::VerdictLevel::try_from(at_least)
            .map_err(|_| Status::invalid_argument(format!("at_least {at_least} is no level")))?;
        let rank = davy_evidence::Level::try_from(at_least).map_or(0, crate::evidence::rank);
        let tenants = self
            .store
            .tenants(host, rank)
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(v1::ListDropletsResponse {
            droplets: tenants.into_iter().map(droplet).collect(),
        }))
    }

    async fn get_droplet(
        &self,
        request: Request<v1::GetDropletRequest>,
    ) -> Result<Response<v1::GetDropletResponse>, Status> {
        let v1::GetDropletRequest {
            host,
            tenant,
            history_max,
        } = request.into_inner();
        let history_max = if history_max == 0 {
            HISTORY_DEFAULT
        } else {
            history_max.min(HISTORY_MAX)
        };
        let rows_max = u64::try_from(MATCHES_SHOWN + 1).unwrap_or(u64::MAX);
        let matches = self
            .store
            .find(host.clone(), tenant.clone(), rows_max)
            .await
            .map_err(|error| status(&error))?;
        let found = only(matches, &host, &tenant)?;
        let history = self
            .store
            .history(
                found.host.clone(),
                found.current.key.clone(),
                history_max.into(),
            )
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(v1::GetDropletResponse {
            droplet: Some(droplet(found)),
            history,
        }))
    }

    async fn get_ingest_status(
        &self,
        _request: Request<v1::GetIngestStatusRequest>,
    ) -> Result<Response<v1::GetIngestStatusResponse>, Status> {
        let hosts = self.store.hosts().await.map_err(|error| status(&error))?;
        let hosts = hosts
            .into_iter()
            .map(|host| {
                let connected = self.live.instance(&host.name);
                host_status(host, connected.as_deref())
            })
            .collect();
        let rejected: HashMap<String, u64> = self
            .metrics
            .rejections()
            .into_iter()
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect();
        Ok(Response::new(v1::GetIngestStatusResponse {
            hosts,
            rejected,
            duplicates: self.metrics.duplicates(),
        }))
    }
}

fn host_status(host: Host, connected: Option<&str>) -> v1::HostStatus {
    let Host {
        name,
        instance,
        last_sequence,
        windows,
        lost_windows,
        last_seen_unix_ns,
        agent_version,
        kernel_release,
        sensors,
    } = host;
    v1::HostStatus {
        connected: connected == Some(instance.as_str()),
        host: name,
        instance,
        last_sequence,
        windows,
        lost_windows,
        last_seen_unix_ns,
        agent_version,
        kernel_release,
        sensors,
    }
}
