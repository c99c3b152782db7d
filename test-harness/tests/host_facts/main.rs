//! How the proxy behaves towards a module, fact by fact: what the filters build on, and what an emulator is held to.
//!
//! Each fact is a function over a [`World`], and a test in every world there is, with the same expectations. What is
//! asked is a probe: a module that does in each callback what its configuration lists, and logs what came of it.
//!
//! The facts in which the proxy is told to lose a VM, and comes back from it, are in `tests/kit.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::string_slice,
    unreachable_pub,
    reason = "a test"
)]
#![recursion_limit = "512"]

mod abi;
mod bodies;
mod calls;
mod emulated;
mod envoy;
mod filter_state;
mod headers;
mod lifecycle;
mod metrics;
mod properties;
mod replies;
mod shared;
mod tcp;
mod world;

/// Each fact of each section as a test in each world.
macro_rules! facts {
    ($($section:ident { $($fact:ident)* })*) => {
        mod on_envoy { $(
            mod $section { $(
                #[tokio::test]
                async fn $fact() -> anyhow::Result<()> {
                    crate::$section::$fact::<crate::envoy::RealEnvoy>().await
                }
            )* }
        )* }
        mod emulation { $(
            mod $section { $(
                #[tokio::test]
                async fn $fact() -> anyhow::Result<()> {
                    crate::$section::$fact::<crate::emulated::Emulated>().await
                }
            )* }
        )* }
    };
}

facts! {
    headers {
        one_value_is_the_first_of_several
        maps_are_there_in_their_own_phase_and_in_on_log
        replace_puts_one_pair_at_the_end_for_all_of_a_name
        whatever_a_map_is_given_is_taken
        a_map_over_1024_pairs_or_one_mib_is_emptied
        a_write_of_a_request_header_clears_the_route
        trailers_can_be_read_and_written_in_their_phase
        some_names_have_one_value_with_commas
        the_names_with_one_value_are_others_in_requests_and_responses
        headers_that_are_continued_and_not_held_go_on_twice
        on_log_sees_what_others_wrote_later
    }
    bodies {
        a_chunk_can_be_read_in_part
        the_end_comes_with_an_empty_chunk_or_the_trailers
        a_buffer_is_written_before_behind_or_instead
        pausing_a_body_gathers_it
        pausing_headers_stops_the_body_unless_it_is_allowed
        a_gathered_request_over_the_limit_is_413
        a_gathered_response_over_the_limit_is_500
    }
    replies {
        a_reply_in_the_request_phase_goes_through_the_own_response_callbacks
        a_reply_at_response_headers_is_seen_by_no_own_callback
        a_reply_at_the_response_body_breaks_the_stream_off
        filters_behind_a_reply_see_on_log_alone
        a_reply_to_a_grpc_caller_is_in_grpc
        a_closed_stream_ends_without_a_response
        some_calls_kill_the_proxy
        calls_for_a_stream_do_nothing_without_one
    }
    properties {
        what_comes_from_headers_is_there_when_they_are
        what_comes_from_the_stream_comes_when_it_is_known
        numbers_grow_with_the_stream
        the_plugin_knows_itself
        there_is_a_status_for_what_is_no_property
    }
    filter_state {
        a_property_that_is_set_is_filter_state
        what_on_log_sets_still_reaches_the_access_log
        a_key_of_two_segments_cannot_be_read_again
        a_declared_property_can_be_read_only
    }
    calls {
        an_answer_comes_to_the_root_and_the_stream_is_resumed
        a_call_that_cannot_be_made_is_refused_at_once
        a_failed_call_has_the_proxys_own_answer_or_none
        a_call_outlives_its_stream
        a_root_calls_without_a_stream
        a_waiting_stream_can_be_answered_from_the_callback
    }
    tcp {
        a_connection_has_these_callbacks
        who_closes_is_told
        data_can_be_read_changed_and_held
        a_refused_connection_reaches_nobody
    }
    shared {
        a_value_has_a_number_that_a_write_may_ask_for
        plugins_with_one_vm_id_share_and_others_do_not
        it_outlives_a_configuration_but_not_the_last_vm
        a_queue_takes_and_gives_in_order
    }
    metrics {
        each_definition_has_a_new_id_for_the_same_series
        each_kind_takes_what_it_takes
        a_series_is_one_for_the_whole_process
        a_gauge_that_several_vms_move_is_moved_by_differences
    }
    abi {
        every_function_of_the_abi_and_18_of_wasi_are_offered
        a_module_that_asks_for_more_is_refused
        a_module_without_a_known_version_is_refused
        the_start_of_a_module_may_log
        the_start_of_a_module_may_call_nothing_else
    }
    lifecycle {
        a_plugin_starts_in_a_canary_on_the_main_thread_and_on_each_worker
        plugins_of_one_vm_have_a_root_each
        a_new_configuration_is_a_new_root_on_the_same_vm
        the_same_configuration_makes_no_new_root
        a_configuration_can_be_refused
        only_a_root_can_put_off_its_end
        a_root_ticks_on_every_thread_until_told_otherwise
        a_trap_ends_all_of_its_vm
        a_trap_in_on_log_ends_the_vm_as_well
        a_new_vm_after_a_trap_finds_what_was_shared
    }
}

/// What the emulator does not play: a scrape, connections that several requests share, capabilities, V8's limits.
mod on_envoy_alone {
    #[tokio::test]
    async fn a_label_is_taken_out_of_the_name() -> anyhow::Result<()> {
        crate::metrics::a_label_is_taken_out_of_the_name().await
    }

    #[tokio::test]
    async fn a_declared_property_can_outlive_its_request() -> anyhow::Result<()> {
        crate::filter_state::a_declared_property_can_outlive_its_request().await
    }

    #[tokio::test]
    async fn only_the_capabilities_that_are_granted_are_there() -> anyhow::Result<()> {
        crate::abi::only_the_capabilities_that_are_granted_are_there().await
    }

    #[tokio::test]
    async fn memory_ends_at_one_gib_and_simd_is_taken() -> anyhow::Result<()> {
        crate::abi::memory_ends_at_one_gib_and_simd_is_taken().await
    }
}
