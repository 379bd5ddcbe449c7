//! One contract for both stores: what the detector is promised of its memory, kept by SQLite and by PostgreSQL alike.
//!
//! A promise is a function of a [`place::Place`]; [`contract!`] makes a test of it for each store. One that is not listed there is
//! dead code, which the lints refuse. Where Debian's PostgreSQL is absent its half is skipped, and says so. What only one
//! of them can come into (a lost connection, a foreign lock) is in `postgres_alone` and beside the store.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod changes;
mod failures;
mod place;
mod postgres_alone;
mod proxy;
mod races;
mod records;
mod releases;
mod replica;
mod support;
mod telemetry;

macro_rules! contract {
    ($($module:ident::$promise:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    crate::$module::$promise(crate::place::Place::sqlite()).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    if let Some(place) = crate::place::Place::postgres() {
                        crate::$module::$promise(place).await;
                    }
                }
            )*
        }
    };
}

contract! {
    changes::a_change_keeps_all_it_brings_also_when_opened_again,
    changes::a_refused_change_keeps_nothing,
    changes::a_change_that_cannot_be_kept_whole_is_not_kept_at_all,
    changes::who_does_not_reach_the_fleet_does_not_change_it,
    changes::a_case_is_locked_while_its_account_is,
    changes::a_reason_is_kept_once_in_every_character,
    changes::droplets_belong_to_whose_inventory_came_last,
    races::no_change_of_one_account_is_lost,
    races::of_a_reason_given_at_once_in_many_cases_one_is_taken,
    races::the_audit_log_is_one_chain_whoever_writes,
    races::accounts_that_swap_droplets_do_not_fail,
    races::a_change_that_is_given_up_is_kept_whole_or_not_at_all,
    races::two_that_are_opened_at_once_make_one_schema,
    releases::after_a_safety_is_committed_no_release_is,
    releases::releases_never_exceed_the_budget,
    releases::nothing_is_released_after_the_stop,
    records::who_is_due_comes_in_the_order_of_time,
    records::accounts_are_listed_by_the_bytes_of_their_ids,
    records::cases_are_listed_in_the_queues_order,
    records::decisions_are_read_by_account_and_number,
    records::policies_are_kept_as_they_were_first,
    records::the_audit_log_is_read_in_parts_and_by_account,
    records::decisions_and_the_audit_log_are_never_changed_or_removed,
    failures::a_store_that_takes_no_writes_says_so_and_loses_nothing,
    failures::a_store_that_has_lost_its_record_of_the_fleet_has_stopped_automation,
    failures::a_newer_schema_is_refused,
    failures::another_programs_database_is_refused,
    telemetry::a_window_is_stored_once_and_read_as_it_was,
    telemetry::what_is_missing_or_rejected_is_counted,
    telemetry::one_sequence_is_stored_once_whoever_brings_it,
    telemetry::a_tenants_history_is_bounded_in_the_order_of_arrival,
    telemetry::all_history_is_bounded_and_the_earliest_stored_goes,
    telemetry::a_hosts_tenants_are_bounded_and_the_last_seen_stay,
    telemetry::hosts_are_bounded_also_when_they_come_at_once,
    telemetry::an_agent_is_known_though_the_clock_was_set_back,
    telemetry::what_was_not_seen_for_the_retention_is_removed,
    telemetry::tenants_are_listed_found_and_counted,
    telemetry::texts_that_cannot_be_are_not_found,
    telemetry::entries_are_counted_right_while_all_is_written_and_removed,
}
