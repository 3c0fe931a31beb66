"""Touchpoints in the host and in torch for breaking and rebuilding communicators; part of the registry."""

from __future__ import annotations

from holdfast.hosts.vllm.contract.touchpoint import Touchpoint, attributes, call, only, wrap

_C10D = "torch.distributed.distributed_c10d"
_DEVICES = "vllm.distributed.device_communicators"
_WITHOUT_PEERS = "maps memory of the peers, which a replacement worker does not have yet"

TORCH_GROUP = wrap(
    _C10D,
    "_new_process_group_helper",
    ("group_size", "group_rank", "global_ranks_in_group", "backend", "store", "group_name", "backend_options"),
    "every process group of torch is made here: its connections and how to make it again",
)
STATELESS_GLOO_GROUP = wrap(
    "vllm.distributed.utils",
    "init_gloo_process_group",
    ("prefix_store", "group_rank", "group_size", "timeout"),
    "the data-parallel group of the engine cores is made here, and made again",
)

ENGINES_GROUP = wrap(
    "vllm.config.parallel",
    "ParallelConfig.stateless_init_dp_group",
    ("return_store",),
    "a replacement engine core starts without its lockstep group",
)

NCCL_INIT_RANK = wrap(
    f"{_DEVICES}.pynccl_wrapper",
    "NCCLLibrary.ncclCommInitRank",
    ("world_size", "unique_id", "rank"),
    "NCCL would wait for ever for a peer that has died",
)
PYNCCL_INIT = wrap(
    f"{_DEVICES}.pynccl", "PyNcclCommunicator.__init__", ("group", "device"), "a replacement worker has no peers yet"
)
PEER_MEMORY = (
    wrap(f"{_DEVICES}.custom_all_reduce", "CustomAllreduce.__init__", ("group", "device"), _WITHOUT_PEERS),
    wrap(f"{_DEVICES}.quick_all_reduce", "QuickAllReduce.__init__", ("group", "device"), _WITHOUT_PEERS),
    wrap(f"{_DEVICES}.symm_mem", "SymmMemCommunicator.__init__", ("group", "device"), _WITHOUT_PEERS),
    wrap(f"{_DEVICES}.flashinfer_all_reduce", "FlashInferAllReduce.__init__", ("group", "device"), _WITHOUT_PEERS),
    wrap(
        f"{_DEVICES}.flashinfer_pcie_ipc_all_reduce",
        "FlashInferPcieIpcAllReduce.__init__",
        ("group", "tune_group"),
        _WITHOUT_PEERS,
    ),
    wrap(f"{_DEVICES}.aiter_custom_all_reduce", "AiterCustomAllreduce.__init__", ("group", "device"), _WITHOUT_PEERS),
)

CPU_ALL_REDUCE = only(
    "0.33", call("vllm.distributed.utils", "cpu_all_reduce_", ("tensor", "group"), "a rank may wait in its frame")
)

_CPU_COMMUNICATOR, _COUNTED = f"{_DEVICES}.cpu_communicator", "a failed rank owes the collectives that are left"
COUNTED_ALL_REDUCE = wrap(_CPU_COMMUNICATOR, "CpuCommunicator.all_reduce", ("input_",), _COUNTED)
COUNTED_ALL_GATHER = wrap(_CPU_COMMUNICATOR, "CpuCommunicator.all_gather", ("input_", "dim"), _COUNTED)
COUNTED_GATHER = wrap(_CPU_COMMUNICATOR, "CpuCommunicator.gather", ("input_", "dst", "dim"), _COUNTED)
_STAGES, _OWED = "vllm.distributed.parallel_state", "a failed stage owes its neighbours a receive and a send"
STAGE_RECEIVE = wrap(
    _STAGES, "GroupCoordinator.irecv_tensor_dict", ("src", "all_gather_group", "all_gather_tensors"), _OWED
)
STAGE_SEND = wrap(
    _STAGES,
    "GroupCoordinator.isend_tensor_dict",
    ("tensor_dict", "dst", "all_gather_group", "all_gather_tensors"),
    _OWED,
)

COMMUNICATOR_TOUCHPOINTS: tuple[Touchpoint, ...] = (
    TORCH_GROUP,
    STATELESS_GLOO_GROUP,
    ENGINES_GROUP,
    CPU_ALL_REDUCE,
    NCCL_INIT_RANK,
    PYNCCL_INIT,
    *PEER_MEMORY,
    COUNTED_ALL_REDUCE,
    COUNTED_ALL_GATHER,
    COUNTED_GATHER,
    STAGE_RECEIVE,
    STAGE_SEND,
    call(_C10D, "destroy_process_group", ("group",), "old groups go before new ones take their names"),
    call(_C10D, "_update_default_pg", ("pg",), "the new default group"),
    *attributes(
        _C10D,
        "_World",
        "pg_map pg_names pg_group_ranks pg_backend_config pg_to_tag tags_to_pg pg_coalesce_state group_count",
        "which groups torch keeps",
    ),
    *attributes(
        "vllm.distributed.parallel_state",
        "GroupCoordinator",
        "device_communicator unique_name world_size _pending_isends",
        "rebuilding groups in place",
    ),
    *attributes(f"{_DEVICES}.base_device_communicator", "DeviceCommunicatorBase", "all2all_manager", "limits"),
    *attributes(
        f"{_DEVICES}.cuda_communicator",
        "CudaCommunicator",
        "pynccl_comm ca_comm qr_comm symm_mem_comm fi_ar_comm fi_pcie_ipc_ar_comm aiter_ar_comm",
        "limits of a rebuild",
    ),
    *attributes(f"{_DEVICES}.cpu_communicator", "CpuCommunicator", "dist_module", "limits of a rebuild"),
    Touchpoint(f"{_DEVICES}.cpu_communicator", "_CPUSHMDistributed", "class", None, "limits of a rebuild"),
    Touchpoint(f"{_DEVICES}.all2all", "AgRsAll2AllManager", "class", None, "limits of a rebuild"),
    *attributes(f"{_DEVICES}.pynccl_wrapper", "NCCLLibrary", "lib _funcs NCCL_CHECK", "asked until ready"),
    *attributes(f"{_DEVICES}.pynccl", "PyNcclCommunicator", "nccl comm available device group world_size", "aborting"),
    call(f"{_DEVICES}.pynccl_wrapper", "NCCLLibrary.ncclCommAbort", ("comm",), "aborting"),
    *attributes("vllm.v1.engine.core", "DPEngineCoreProc", "dp_store dp_rank dp_size", "rebuilding their group"),
)
