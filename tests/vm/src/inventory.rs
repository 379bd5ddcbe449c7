//! What the detector says: its Inventory service, polled, and the history of windows gathered from it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use davy_proto::v1::inventory_client::InventoryClient;
use davy_proto::v1::{
    Droplet, Evidence, GetDropletRequest, GetIngestStatusRequest, GetIngestStatusResponse,
    HistoryEntry, HostStatus, ListDropletsRequest, VerdictLevel,
};
use tonic::transport::{Channel, Endpoint};

/// The host name the agent is configured with.
pub(crate) const HOST: &str = "hv-1";
/// Windows asked for at a look beyond those (of 1 s) that ended since the last one.
const HISTORY_OVERLAP: u64 = 10;
/// Most windows asked for.
const HISTORY_MAX: u64 = 120;

/// The detector's view, with every window seen so far.
#[derive(Debug)]
pub(crate) struct Inventory {
    client: InventoryClient<Channel>,
    /// As of the last look, by tenant name.
    droplets: BTreeMap<String, Droplet>,
    /// By tenant name, then by end of the window.
    windows: BTreeMap<String, BTreeMap<u64, HistoryEntry>>,
    /// When the last look that succeeded began.
    looked: Instant,
}

impl Inventory {
    /// Connects when first used.
    pub(crate) fn new(url: &'static str) -> Self {
        let channel = Endpoint::from_static(url)
            .timeout(Duration::from_secs(15))
            .connect_lazy();
        Self {
            client: InventoryClient::new(channel),
            droplets: BTreeMap::new(),
            windows: BTreeMap::new(),
            looked: Instant::now(),
        }
    }

    /// Fetches the present state of all droplets and their latest windows.
    pub(crate) async fn look(&mut self) -> Result<()> {
        let begun = Instant::now();
        let missed = (self.looked.elapsed().as_secs() + HISTORY_OVERLAP).min(HISTORY_MAX);
        let listed = self
            .client
            .list_droplets(ListDropletsRequest {
                host: HOST.to_owned(),
                at_least: VerdictLevel::Unspecified.into(),
            })
            .await
            .context("ListDroplets")?
            .into_inner();
        for droplet in listed.droplets {
            let Some(current) = &droplet.current else {
                continue;
            };
            let name = current.name.clone();
            let request = GetDropletRequest {
                host: HOST.to_owned(),
                tenant: current.key.clone(),
                history_max: u32::try_from(missed)?,
            };
            let got = self
                .client
                .get_droplet(request)
                .await
                .with_context(|| format!("GetDroplet {name}"))?
                .into_inner();
            let windows = self.windows.entry(name.clone()).or_default();
            windows.extend(
                got.history
                    .into_iter()
                    .map(|entry| (entry.end_unix_ns, entry)),
            );
            self.droplets.insert(name, droplet);
        }
        self.looked = begun;
        Ok(())
    }

    /// As [`Self::look`], but only when the last look is a while ago: enough to miss no window.
    pub(crate) async fn keep_up(&mut self) {
        if self.looked.elapsed() > Duration::from_secs(20) {
            // A failed look is made good by the next: it asks for more.
            let _ = self.look().await;
        }
    }

    /// The detector's own counters.
    pub(crate) async fn ingest(&mut self) -> Result<GetIngestStatusResponse> {
        let status = self
            .client
            .get_ingest_status(GetIngestStatusRequest {})
            .await
            .context("GetIngestStatus")?;
        Ok(status.into_inner())
    }

    /// This host's line among the counters.
    pub(crate) async fn host(&mut self) -> Result<HostStatus> {
        let status = self.ingest().await?;
        let host = status.hosts.into_iter().find(|host| host.host == HOST);
        host.with_context(|| format!("the detector does not know {HOST} yet"))
    }

    /// A droplet as of the last look.
    pub(crate) fn droplet(&self, name: &str) -> Option<&Droplet> {
        self.droplets.get(name)
    }

    /// Names of all droplets seen.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.droplets.keys().map(String::as_str).collect()
    }

    /// A droplet's windows that ended after `since_unix_ns`, oldest first.
    pub(crate) fn windows(&self, name: &str, since_unix_ns: u64) -> Vec<&HistoryEntry> {
        self.windows
            .get(name)
            .map(|windows| {
                windows
                    .range(since_unix_ns + 1..)
                    .map(|(_, entry)| entry)
                    .collect()
            })
            .unwrap_or_default()
    }

    /// A droplet's evidence as of the last look.
    pub(crate) fn evidence(&self, name: &str) -> Option<&Evidence> {
        self.droplet(name)?.current.as_ref()?.evidence.as_ref()
    }

    /// A droplet's verdict as of the last look, with its reasons.
    pub(crate) fn verdict(&self, name: &str) -> Option<(VerdictLevel, String)> {
        let verdict = self.droplet(name)?.current.as_ref()?.verdict.as_ref()?;
        Some((verdict.level(), verdict.reasons.join("; ")))
    }
}

/// Samples by rounding mode, summed over windows.
pub(crate) fn modes(windows: &[&HistoryEntry]) -> [u64; 4] {
    let mut sums = [0; 4];
    for fp in windows
        .iter()
        .filter_map(|entry| evidence_of(entry)?.fp_rounding.as_ref())
    {
        for (sum, count) in sums.iter_mut().zip(&fp.modes) {
            *sum += count;
        }
    }
    sums
}

/// Whether `fp_rounding` had concluded in a window.
pub(crate) fn concluded(entry: &HistoryEntry) -> bool {
    evidence_of(entry)
        .and_then(|evidence| evidence.fp_rounding.as_ref())
        .is_some_and(|fp| fp.concluded)
}

/// The verdict's level in a window.
pub(crate) fn level(entry: &HistoryEntry) -> VerdictLevel {
    entry
        .window
        .as_ref()
        .and_then(|window| window.verdict.as_ref())
        .map_or(VerdictLevel::Unspecified, davy_proto::v1::Verdict::level)
}

fn evidence_of(entry: &HistoryEntry) -> Option<&Evidence> {
    entry.window.as_ref()?.evidence.as_ref()
}
