//! Which test must fail when which mechanism is switched off, and by which words. docs/proof.md shows the same table.

use mesh_common::mutation::Mechanism;

/// One line of the table.
pub(crate) struct Proof {
    /// What is switched off.
    pub(crate) mechanism: Mechanism,
    /// The test program: a suite, or the crate whose unit tests are meant.
    pub(crate) program: &'static str,
    /// The test, as libtest names it.
    pub(crate) test: &'static str,
    /// What its failure says: a test that fails for another reason proves nothing.
    pub(crate) says: &'static str,
}

const fn proof(mechanism: Mechanism, program: &'static str, test: &'static str, says: &'static str) -> Proof {
    Proof {
        mechanism,
        program,
        test,
        says,
    }
}

/// All of them.
#[rustfmt::skip]
pub(crate) const PROOFS: &[Proof] = &[
    proof(Mechanism::PeerSan, "mtls", "server_role::each_kind_of_bad_certificate_is_refused_before_any_stream", "a certificate with two URI SANs was served"),
    proof(Mechanism::ExpectedId, "mtls", "client_role::a_server_that_is_not_the_expected_workload_gets_no_stream", "another workload's id was believed"),
    proof(Mechanism::Recheck, "mesh_agent", "identity::tests::sessions::a_session_is_not_resumed_on_a_client_certificate_that_has_run_out", "on an `Ok` value"),
    proof(Mechanism::TrustDomain, "mtls", "server_role::each_kind_of_bad_certificate_is_refused_before_any_stream", "a certificate of another trust domain was served"),
    proof(Mechanism::PlanTrustDomain, "mesh_core", "plan::tests::only_local_trust_domains_and_own_addresses_are_permitted", "Test failed: assertion failed: fits"),
    proof(Mechanism::ClientCertificate, "mtls", "server_role::each_kind_of_bad_certificate_is_refused_before_any_stream", "a certificate missing was served"),
    proof(Mechanism::Authority, "mtls", "server_role::an_authority_that_is_not_the_pod_behind_the_address_is_answered_400", "failed: 198.18.1.11:8080"),
    proof(Mechanism::Rotation, "mtls", "rotation::ten_second_certificates_rotate_under_load_without_one_failed_request", "not renewed in time"),
    proof(Mechanism::ForgetSessions, "mesh_agent", "identity::tests::sessions::a_rotated_certificate_ends_sessions_on_either_side_but_no_connection", "Some(Resumed)"),
    proof(Mechanism::KeyPermissions, "mesh_agent", "identity::ca::tests::wide_permissions_are_refused_with_the_remedy", "on an `Ok` value: EmbeddedCa"),
    proof(Mechanism::Connect4, "mtls", "wire::between_enrolled_pods_no_wire_ever_carries_plaintext", "failed: 198.19.0.10: Report"),
    proof(Mechanism::Connect6, "capture", "ways::a_service_address_leads_to_its_pod_in_both_families_and_from_v4_mapped_sockets", "client → 2001:db8:ffff::10:80"),
    proof(Mechanism::GetPeerName4, "capture", "ways::the_names_stay_true_on_connections_that_idle", "getpeername() of the client"),
    proof(Mechanism::GetPeerName6, "capture", "ways::both_ends_see_the_addresses_they_would_see_without_a_mesh", "the server's accept()"),
    proof(Mechanism::Handoff, "capture", "ways::a_pod_reaches_pods_of_its_node_and_of_another_in_both_families", "client → 198.18.1.11:8080"),
    proof(Mechanism::Steering, "mtls", "policy::strict_refuses_plaintext_and_still_lets_the_mesh_in", "!reaches(&scene.visitor, &scene.far, 8080)"),
    proof(Mechanism::NoReuseport, "capture", "life::a_process_in_the_pod_that_joins_the_listeners_ports_steals_nothing", "stolen: "),
    proof(Mechanism::LoneListeners, "mesh_agent", "capture::tests::nothing_of_ours_joins_a_reuseport_group_and_sockets_are_made_as_promised", "!socket.reuse_port()"),
    proof(Mechanism::ReuseAddress, "mesh_agent", "capture::tests::facts::an_application_can_bind_its_port_while_a_steered_connection_to_it_lives", "the application cannot have its own port"),
    proof(Mechanism::RewriteSpread, "mesh_agent", "capture::tests::facts::captured_connections_are_spread_over_the_rewrite_ports", "only 1 ports are used"),
    proof(Mechanism::HandoffTaken, "mesh_agent", "capture::tests::thousands_of_connections_of_all_kinds_leave_the_flow_maps_empty", "HANDOFF"),
    proof(Mechanism::OwnAddresses, "capture", "bounds::loopback_and_the_pods_own_addresses_are_left_alone", "failed: 198.18.1.10: Report"),
    proof(Mechanism::AgentPortDrop, "mesh_agent", "capture::tests::connections_from_off_the_pod_reach_the_listener_of_their_role", "on an `Ok` value: TcpStream"),
    proof(Mechanism::NoListenerDrop, "capture", "life::while_the_agent_is_dead_connections_are_refused_and_nothing_goes_in_plaintext", "text: \"canary-while-the-agent-is-away\""),
    proof(Mechanism::StrictDrop, "mtls", "policy::strict_refuses_plaintext_and_still_lets_the_mesh_in", "!reaches(&scene.visitor, &scene.far, 8080)"),
    proof(Mechanism::TunnelToEnrolled, "mtls", "wire::between_enrolled_pods_no_wire_ever_carries_plaintext", "plaintext at"),
    proof(Mechanism::PoolPruning, "mesh_agent", "worker::tests::a_pod_that_takes_over_an_address_never_meets_its_predecessors_tunnel", "not within 5 s: the pool forgets it"),
    proof(Mechanism::Retirement, "mesh_agent", "worker::tests::a_retired_pods_connections_are_reset_and_its_tunnels_dropped", "a connection lives on that was to be reset"),
    proof(Mechanism::ClientAnnouncement, "capture", "ways::both_ends_see_the_addresses_they_would_see_without_a_mesh", "the server's accept()"),
    proof(Mechanism::HalfClose, "capture", "flows::the_client_may_end_first_and_still_hear_the_answer", "end: \"timeout\""),
    proof(Mechanism::ResetPropagation, "capture", "flows::a_reset_by_the_client_reaches_the_server_as_a_reset", r#"right: "reset""#),
    proof(Mechanism::StreamCap, "mesh_agent", "tunnel::meter::tests::a_peer_with_4_and_16_mib_windows_gets_four_streams_per_connection", "left: Free"),
    proof(Mechanism::ConnectionBudget, "mesh_agent", "worker::tests::a_pod_over_its_connection_budget_is_refused_and_served_again_later", "a connection lives on that was to be reset"),
    proof(Mechanism::StreamBudget, "mesh_agent", "worker::tests::a_pod_over_its_stream_budget_refuses_and_says_so", "a connection lives on that was to be reset"),
    proof(Mechanism::HandshakeBudget, "mesh_agent", "tunnel::budget::tests::handshakes_run_out_and_come_back", "left: Ok(())"),
    proof(Mechanism::LastGoodState, "capture", "config::a_bad_document_is_named_with_line_and_column_and_the_last_good_one_stays_in_force", "the last good version no longer serves"),
    proof(Mechanism::ForeignDevice, "evasion", "sockets::sockets_bound_to_the_pods_device_are_captured_and_others_pass_but_never_to_the_mesh", "bound to net1, to 198.18."),
    proof(Mechanism::FastOpenCookie, "evasion", "packets::a_packet_with_a_forged_source_reaches_no_application_and_counts_as_no_connection", "an enrolled pod may not go without cookies"),
    proof(Mechanism::ProbeCgroup, "enrolment", "probes::a_container_below_the_kubelets_cgroup_ends_the_passage_until_it_is_gone", "the check of probes: not within"),
    proof(Mechanism::ProbeProcess, "enrolment", "shared::a_kubelet_in_a_cgroup_above_the_pods_probes_them_and_nobody_else_there_passes_for_it", "a program that the kubelet starts"),
    proof(Mechanism::ProbeNetns, "enrolment", "probes::what_is_not_a_probe_of_the_kubelet_is_refused_under_strict", "a process of the kubelet's cgroup in another namespace"),
    proof(Mechanism::ProbePort, "enrolment", "probes::what_is_not_a_probe_of_the_kubelet_is_refused_under_strict", "no probe declares this port"),
    proof(Mechanism::StrictExclusion, "enrolment", "exclusions::an_excluded_inbound_port_ends_with_strict_and_so_do_the_connections_that_it_let_in", "the exclusion ends: not within"),
    proof(Mechanism::OlderClosed, "enrolment", "older::older_connections_are_listed_while_they_live_and_closed_once_strict_comes", "1 older connections: not within"),
    proof(Mechanism::SessionAffinity, "services", "affinity::a_client_keeps_its_endpoint_over_all_workers_and_addresses_until_it_goes", "a client keeps its endpoint"),
    proof(Mechanism::GoneAtOnce, "mesh_agent", "worker::tests::a_pod_that_takes_over_an_address_never_meets_its_predecessors_tunnel", "a connection lives on that was to be reset"),
    proof(Mechanism::NodeLocal, "mesh_core", "plan::tests::services::a_local_traffic_policy_and_a_traffic_distribution_hold_for_each_client", "failed: internalTrafficPolicy: Local"),
    proof(Mechanism::LeavingLast, "mesh_core", "plan::tests::services::ready_endpoints_come_first_and_leaving_ones_that_serve_last", r#"left: "1 2 3""#),
    proof(Mechanism::FloodGuard, "mesh_agent", "tunnel::guard::tests::frames_that_flow_control_does_not_slow_are_counted_and_come_back_with_time", "on an `Ok` value: ()"),
    proof(Mechanism::RapidReset, "hostile", "floods::rapid_resets_empty_frames_and_endless_headers_are_cut", "rapid-reset: {"),
    proof(Mechanism::HeaderLimit, "hostile", "floods::rapid_resets_empty_frames_and_endless_headers_are_cut", "header-bomb: {"),
    proof(Mechanism::HandshakeTimeout, "mesh_agent", "identity::handshake::tests::a_silent_peer_is_given_up", "the silent peer is waited for"),
    proof(Mechanism::EventsTold, "capture", "events::a_connection_from_outside_to_an_agent_port_is_dropped_with_an_event", "an event dropped_agent_port: not within"),
    proof(Mechanism::DenyWins, "mesh_core", "authz::tests::table::policies_work_together_in_their_order", r#"right: "+++++--+""#),
    proof(Mechanism::AllowNeeded, "mesh_core", "authz::tests::table::policies_work_together_in_their_order", r#"right: "--------""#),
    proof(Mechanism::RootPolicies, "mesh_core", "authz::tests::table::policies_work_together_in_their_order", "namespace: istio-system"),
    proof(Mechanism::HandoffForgotten, "capture", "bounds::connections_that_are_reset_before_they_are_accepted_leave_no_hand_off", "the kernel forgets what is reset at once"),
    proof(Mechanism::HandoffTakenBack, "capture", "bounds::connections_that_are_reset_before_they_are_accepted_leave_no_hand_off", "the agent takes back what it does not carry: not within"),
    proof(Mechanism::AbiVersion, "mesh_agent", "capture::tests::succession::pins_of_another_abi_or_with_other_maps_are_replaced_and_not_adopted", "another ABI"),
    proof(Mechanism::LinkTarget, "mesh_agent", "capture::tests::succession::a_link_on_a_cgroup_that_is_not_the_pods_any_more_is_not_adopted", "203.0.113.1"),
    proof(Mechanism::BankFlip, "lifecycle", "upgrade::an_upgrade_loses_nothing_without_syn_cookies", "connections were lost"),
    proof(Mechanism::AdoptedRules, "mesh_agent", "capture::tests::succession::what_a_dead_agent_let_pass_is_compared_with_what_may_pass_now", "as the kernel has it"),
    proof(Mechanism::AdoptedLeftovers, "mesh_agent", "capture::tests::succession::pods_that_nobody_wants_any_more_are_released_by_the_successor", "nothing captures it"),
    proof(Mechanism::Authorize, "policy", "decisions::a_policy_lets_in_whom_it_names_and_refuses_others_with_the_reason", "another identity"),
    proof(Mechanism::ReJudging, "policy", "changes::a_change_of_policy_closes_the_connections_that_it_denies_and_leaves_the_others", "still runs"),
];
