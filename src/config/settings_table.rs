//! The table of settings: the only place that defines a setting. The configuration's types, the file, environment
//! variables, flags, validation, `--print-config` and docs/settings.md all come from it.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use super::{
    checks::{is_broker_urls, is_collector_url, is_log_level, is_model_name, is_not_blank, is_subject_token},
    declare::{optional, settings},
    defaults::{default_cache_dir, default_model_id, default_prompt_dir},
    setting::{Flag, Setting},
    types::{
        AffinityMode, Aliases, AnswerLimit, CacheDir, DefaultsFrom, DrainMode, Hosts, ListenAddresses,
        LogFormat, MetricNames, Origins, QueueStorage, Secret, UnknownFields,
    },
    validate::Validator,
    value::SettingValue,
};
use crate::{
    device_spec::{BlockSize, CacheChoice, Devices, PackedFileChoice, Pooling, Verify, WeightFormat},
    trim_policy::TrimPolicy,
    units::{Bytes, Millis, Ratio, Tokens},
};

const WEEK_MS: i64 = 7 * 24 * 3_600_000;

settings! {
    /// HTTP server
    server: Server {
        /// IP address to listen on; `0.0.0.0` for every interface
        bind: IpAddr = "127.0.0.1",
            expect "an IP address, such as 127.0.0.1, or 0.0.0.0 for every interface",
            flag "bind" "ADDRESS";
        /// Port to listen on; 0 picks a free port
        port: u16 = 8110, in 0..=65_535, flag "port" "PORT";
        /// Further addresses to listen on, separated by commas: `unix:PATH` for a Unix socket, or an IP address with a port. A Unix
        /// socket has no TLS, and its clients count as local
        listen: ListenAddresses, unset "only server.bind and server.port",
            expect "addresses separated by commas, such as unix:/run/eka.sock or 192.168.1.5:8110",
            flag "listen" "ADDRESSES";
        /// Time that running requests have to finish after a stop signal
        grace_ms: Millis = 30_000, in 0..=WEEK_MS;
        /// Interval of keep-alive comments on a stream that has nothing to send
        heartbeat_ms: Millis = 2000, in 100..=60_000;
        /// Largest request body
        body_limit_bytes: Bytes = 4_194_304, in 1..=1 << 30;
        /// Maximum memory for all request bodies together; a request that exceeds it gets a 503. The first 64 KiB of each body
        /// are not counted
        body_memory_bytes: Bytes = 67_108_864, in 1..=1 << 40;
        /// Maximum number of connections; for one more, the connection that has been idle for longest is closed
        max_connections: NonZeroUsize = 1024, in 1..=1 << 20;
        /// Names that requests may use in `Host`, without ports, such as `chat.example.org`; `*` allows any. With API keys,
        /// `Host` is checked only if this is set
        hosts: Hosts, unset "addresses, localhost and names of private networks",
            expect "names without ports, separated by commas, such as chat.example.org, or * for any";
        /// Handling of unknown fields in requests: `refuse` answers 400 and names the field, `warn` ignores the field and
        /// names it in the header `x-eka-ignored-fields`
        unknown_fields: UnknownFields = "refuse", expect "refuse or warn";
        /// Names under which `/metrics` repeats some metrics: `vllm` for vLLM's, `gen_ai` for OpenTelemetry's, `all` for both,
        /// `eka` for neither
        metric_names: MetricNames = "eka", expect "eka, vllm, gen_ai or all";
        /// Memory for responses that `/v1/responses` stores for `previous_response_id`, the oldest of which make room for new
        /// ones; 0 stores none. With more, responses are stored unless a request has `"store": false`
        stored_responses_bytes: Bytes = 0, in 0..=1 << 40;
        /// Time after which a stored response is removed
        stored_responses_ttl_ms: Millis = 3_600_000, in 1000..=WEEK_MS;
        /// Time for which a stream of events goes on without its client and can be resumed, also after its end; 0 ends the generation when
        /// its client disconnects
        resume_ms: Millis = 0, in 0..=3_600_000;
        /// Memory for the events of streams that can be resumed, an eighth of it for each
        resume_bytes: Bytes = 67_108_864, in 1 << 20..=1 << 40;
    }

    /// API keys
    auth: Auth {
        /// TOML file of `[[key]]` tables: `name`, `key` or `sha256`, and optionally `admin`, `models`,
        /// `requests_per_minute`, `tokens_per_minute`; reloaded when it changes
        keys_file: Option<PathBuf>, unset "no keys except those of auth.keys", expect "a file of [[key]] tables";
        /// Keys without limits or rights: `name:key` or `key`, separated by commas
        keys: Option<Secret>, unset "no keys except those of auth.keys_file",
            expect "keys of 16 characters or more, separated by commas, each as name:key or key";
        /// Serve `/metrics` without a key, even if keys are configured
        open_metrics: bool = false;
    }

    /// TLS
    tls: Tls {
        /// PEM file of certificates, the server's own first; reloaded when it changes
        cert_file: Option<PathBuf>, unset "HTTP without TLS",
            expect "a file of PEM certificates, the server's own first";
        /// PEM file of the certificate's private key
        key_file: Option<PathBuf>, unset "HTTP without TLS",
            expect "a file with the certificate's private key, in PEM";
    }

    /// Cross-origin requests from web pages
    cors: Cors {
        /// Allowed origins, separated by commas; `*` allows all, except for `/admin`
        origins: Origins, unset "no other origin",
            expect "origins separated by commas, such as https://chat.example.org, or * for all";
    }

    /// Rate limits
    limits: Limits {
        /// Maximum number of requests per minute from one address; an IPv6 /64 network counts as one address
        requests_per_minute_per_ip: Option<NonZeroU32>, unset "no limit", in 1..=1_000_000;
    }

    /// Default model, and how it is exported
    model: Model {
        /// Directory of an exported model, a source directory with `base/` or `base.gguf` and optionally `adapter/`, or a GGUF file
        path: PathBuf = "models/demo",
            expect "an exported model, a directory that holds base/ or base.gguf, or a GGUF file",
            flag "model" "DIR";
        /// The model's name in requests
        id: String, unset "the name of the directory or GGUF file", derive default_model_id,
            expect "a name that is not empty, without spaces", check is_model_name,
            flag "model-id" "NAME";
        /// Weight format when a source directory is exported: `none` (unquantized), `int8` or `int4`
        quantize: WeightFormat = "none", expect "none, int8 or int4", flag "quantize" "TYPE";
        /// Number of weights that share a scale, when quantized: 32, 64 or 128
        block_size: Option<BlockSize>, unset "the exporter's choice", in 32..=128;
        /// Directory for exports of source directories. The default must belong to the user and is made private (mode
        /// 0700); without a home directory it is `eka-UID` in the temporary directory
        cache_dir: CacheDir, unset "the user's cache directory", derive default_cache_dir, expect "a directory";
        /// Check of a model's files before they are served: `size`, or `hash` to read every byte
        verify: Verify = "size", expect "size, or hash to read every byte of a model before it is served";
    }

    /// Further models
    models: Models {
        /// Further names of models in requests, separated by commas, such as `gpt-4o=demo`; `*=demo` is for every other name
        aliases: Aliases, unset "no further names", expect "ALIAS=MODEL, separated by commas, such as gpt-4o=demo";
        /// Directory whose subdirectories are served as well, loaded on demand
        dir: Option<PathBuf>, unset "only the model of model.path", expect "a directory of models",
            flag "models" "DIR";
        /// Maximum memory for all loaded models; the least recently used model is unloaded first
        memory_bytes: Option<Bytes>, unset "half of the machine's memory", in 1..=1 << 50;
        /// Maximum memory of a worker for adapters that are served beside their base; the least recently used adapter is dropped first
        adapters_bytes: Option<Bytes>, unset "a quarter of the machine's memory", in 1..=1 << 50;
        /// Interval at which the directories of adapters are read again, so that adapters can be added and removed
        adapters_scan_ms: Millis = 2000, in 100..=WEEK_MS;
        /// Time after which an unused model is unloaded
        keep_alive_ms: Option<Millis>, unset "until another model needs the memory", in 0..=WEEK_MS;
    }

    /// Request queue
    queue: Queue {
        /// Maximum number of waiting requests; further requests get a 429
        max_jobs: NonZeroUsize = 32, in 1..=1 << 20, flag "queue" "JOBS";
        /// Maximum number of prompt tokens of all waiting requests together
        max_prompt_tokens: Tokens = 65_536, in 1..=1 << 24;
        /// Longest wait in the queue, and the default for requests without `queue_timeout_ms`
        timeout_ms: Millis = 60_000, in 1..=WEEK_MS;
        /// Longest time from a request's arrival to the end of its answer, and the default for requests without
        /// `timeout_ms`; at least `queue.timeout_ms`
        total_timeout_ms: Millis = 600_000, in 1..=WEEK_MS;
        /// Maximum number of interactive requests in a row that may overtake an older batch request
        max_overtakes: usize = 4, in 0..=1 << 20;
        /// Maximum number of model switches in a row while a request for the loaded model waits
        max_switches: Option<NonZeroUsize>, unset "no limit", in 1..=1 << 20;
    }

    /// Inference engine
    engine: Engine {
        /// Devices: `cpu`, `cuda`, `cuda:N` with the number of a GPU, `auto` for the first usable GPU or else the CPU, or
        /// several separated by commas, such as `cuda:0,cuda:1`
        device: Devices = "auto",
            expect "auto, cpu, cuda, cuda:N with the number of a GPU, or several such as cuda:0,cuda:1",
            flag "device" "DEVICE";
        /// Maximum number of compute threads of a worker. From four threads on, the fastest number is measured at load, separately for
        /// decode and prefill. Several workers on the CPU share the physical cores
        threads: Option<NonZeroUsize>, unset "physical cores", in 1..=1024, flag "threads" "N";
        /// Maximum number of prompt tokens in one forward pass
        prefill_chunk: NonZeroUsize = 512, in 1..=16_384;
        /// Maximum number of tokens of prompt and answer together, below the model's own limit
        context_length: Option<Tokens>, unset "the model's", in 2..=1 << 24, flag "context-length" "TOKENS";
        /// Maximum memory for the prefix cache, which keeps earlier prompts and answers; 0 disables it. On a GPU only the last
        /// sequence is kept, within `device.kv_keep_bytes`
        prefix_cache_bytes: Bytes = 268_435_456, in 0..=1 << 50;
        /// Directory where `POST /admin/cache` saves prompts
        prefix_cache_dir: PathBuf, unset "prompts/ in model.cache_dir", derive default_prompt_dir,
            expect "a directory";
        /// Share the prefix cache between different API keys
        prefix_cache_shared: bool = false;
        /// Maximum number of draft tokens that are verified in one pass, used where it pays; 0 disables speculative decoding
        draft_tokens: usize = 15, in 0..=255;
        /// Draft model for speculative decoding, with the same tokenizer: a directory, or the name of one in `models.dir`
        draft_model: Option<PathBuf>, unset "drafts come from the prompt and answer",
            expect "a directory, or the name of one in models.dir: a model with the same tokenizer",
            flag "draft-model" "DIR";
        /// Maximum number of sequences that are computed together: the choices (`n`) and prompts of one request. Those of a
        /// request that has more follow each other. Every sequence needs memory for its part of the key-value cache
        max_sequences: NonZeroUsize = 8, in 1..=128;
        /// On a GPU, and with graphs that eka's own operators do not compute, give the same request the same bits as well,
        /// without drafts and the prefix cache. Elsewhere it has the same bits in any case
        exact: bool = false;
        /// Longest answer of a request that does not set a limit, in tokens; `context` is what the prompt leaves of the context
        default_max_new_tokens: AnswerLimit = "context", in 1..=1 << 24,
            expect "context, or a number of tokens from 1 to 16777216";
        /// Embedding of a text: `last`, the hidden state of its last token, or `mean`, the mean of all; requests may choose
        pooling: Pooling = "last", expect "last or mean", flag "pooling" "POOLING";
        /// Sampling parameters of requests that send none: `model` takes those of the model's `generation_config.json`
        /// (`temperature`, `top_p`, `top_k`, `min_p`, `repetition_penalty`, `do_sample`), `eka` ignores that file
        sampling_defaults: DefaultsFrom = "model", expect "model or eka", flag "sampling-defaults" "SOURCE";
        /// Pin the threads of each CPU worker to its own physical cores (Linux); for machines that run nothing else
        pin_cores: bool = false;
        /// On a CPU, replace ONNX Runtime's matrix products and attention with eka's own operators, which give a token the
        /// same logits whatever it is computed with, and are faster
        own_operators: bool = true;
        /// Data type of the key-value cache on a CPU with `engine.own_operators`: `float32`, `float16`, `int8` (8.5 bits
        /// with scales), or `auto`: float16 for quantized and float16 weights, else float32
        kv_cache: CacheChoice = "auto", expect "auto, float32, float16 or int8";
        /// On a CPU, keep quantized weights in the layout of eka's operators in a file beside the graph
        /// (`model.onnx.packed`, as large as the quantized weights), which later starts map instead of packing again:
        /// `always`, `never`, or `auto`: from 64 MiB of weights on
        packed_file: PackedFileChoice = "auto", expect "auto, always or never";
    }

    /// Device memory
    device: Device {
        /// Maximum GPU memory of a worker for weights, cache and computation; a request that needs more fails with 413
        /// `out_of_memory`
        memory_limit_bytes: Option<Bytes>, unset "all that the GPU has", in 1 << 20..=1 << 50;
        /// When unused GPU memory is released: `always`, `above=<bytes>`, `idle=<ms>` or `never`; `,keep=<bytes>` keeps
        /// that much
        trim: TrimPolicy = "always",
            expect "always, above=<bytes>, idle=<milliseconds> or never, optionally followed by ,keep=<bytes>";
        /// Maximum GPU memory that the key-value cache keeps for the next request
        kv_keep_bytes: Bytes = 0, in 0..=1 << 50;
        /// Run decode steps on a GPU as CUDA graphs; `false` runs them operator by operator
        cuda_graphs: bool = true;
        /// Manage the CPU's memory like a GPU's; for tests
        host_pool: bool = false;
    }

    /// ONNX Runtime
    onnxruntime: OnnxRuntime {
        /// Directory of the ONNX Runtime library. Without it, `ORT_DYLIB_PATH` (a file or directory), `lib/` beside the
        /// program, and `.onnxruntime/` above it are searched; never the working directory
        dir: Option<PathBuf>, unset "where `eka doctor` looks", expect "a directory", flag "onnxruntime" "DIR";
    }

    /// Watchdog: how long a worker may be silent before it is replaced
    watchdog: Watchdog {
        /// While it starts and loads a model
        load_ms: Millis = 600_000, in 1..=WEEK_MS;
        /// While it runs a model for the first time
        warm_up_ms: Millis = 120_000, in 1..=WEEK_MS;
        /// While it reads a chunk of a prompt: this time plus `watchdog.prefill_factor` times the expected time
        prefill_base_ms: Millis = 30_000, in 1..=WEEK_MS;
        /// Multiple of the time that a chunk of this length took recently, in the worst case
        prefill_factor: u32 = 10, in 1..=10_000;
        /// While it computes a token: this time, or `watchdog.decode_factor` times the recent time, whichever is longer
        decode_floor_ms: Millis = 15_000, in 1..=WEEK_MS;
        /// Multiple of the time that slow tokens took recently
        decode_factor: u32 = 50, in 1..=10_000;
        /// While a message is sent to it
        pipe_ms: Millis = 10_000, in 1..=WEEK_MS;
        /// While it is idle, and to accept a job; it is pinged every quarter of this time
        idle_ms: Millis = 10_000, in 100..=WEEK_MS;
    }

    /// Planned replacement of healthy workers
    recycle: Recycle {
        /// Replace a worker after this many answers
        after_jobs: Option<u64>, unset "never", in 1..=1 << 40;
        /// Replace a worker after this time
        after_ms: Option<Millis>, unset "never", in 1000..=52 * WEEK_MS;
        /// Replace a worker that, after a trim, holds this much more memory than its models took
        memory_growth_bytes: Bytes = 1_073_741_824, in 1 << 20..=1 << 50;
        /// Replace the worker after every answer; for drivers that hang
        between_requests: bool = false;
    }

    /// Log
    log: Log {
        /// Log level: `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,eka=debug`
        level: String = "info",
            expect "error, warn, info, debug, trace or a filter such as info,eka=debug", check is_log_level,
            flag "log" "LEVEL";
        /// Format of a line: `text`, or `json` with one object per line
        format: LogFormat = "text", expect "text or json";
        /// Log prompts as well, to debug a chat template
        prompts: bool = false;
    }

    /// Traces
    trace: Trace {
        /// Collector of traces, OTLP over HTTP without TLS, such as `http://127.0.0.1:4318`
        otlp_endpoint: Option<String>, unset "no traces",
            expect "the URL of an OTLP collector over HTTP without TLS, such as http://127.0.0.1:4318",
            check is_collector_url;
        /// Share of requests that are traced, from 0 to 1, if the client does not decide
        sample_ratio: Ratio = 1;
        /// Name of this server in traces
        service_name: String = "eka", expect "a name that is not empty", check is_not_blank;
    }

    /// Several machines: gateways, nodes, and the NATS server between them
    cluster: Cluster {
        /// URLs of NATS servers, separated by commas, such as `nats://10.0.0.5:4222`; `tls://` requires TLS. `eka gateway` and
        /// `eka node` need it; with it, `eka serve` is a gateway and a node
        join: Option<String>, unset "one machine",
            expect "URLs of NATS servers separated by commas, such as nats://10.0.0.5:4222, without user and password",
            check is_broker_urls, flag "join" "URLS";
        /// First part of every subject, and the name of the stream; two clusters on one NATS server need different ones
        prefix: String = "eka", expect "letters, digits, - and _", check is_subject_token;
        /// Name of this node in subjects, logs and `/v1/slot`; unique in the cluster
        node_id: Option<String>, unset "the host's name and random digits", expect "letters, digits, - and _",
            check is_subject_token;
        /// User for the NATS server
        user: Option<String>, unset "no user", expect "a name that is not empty", check is_not_blank;
        /// File with the user's password
        password_file: Option<PathBuf>, unset "no password", expect "a file with a password";
        /// File with the seed of an nkey, which replaces user and password
        nkey_file: Option<PathBuf>, unset "no nkey", expect "a file with the seed of an nkey, which starts with SU";
        /// PEM file of the certificates that the NATS server's certificate may be signed with
        ca_file: Option<PathBuf>, unset "the system's certificates", expect "a file of PEM certificates";
        /// PEM file of this process's certificate for the NATS server
        cert_file: Option<PathBuf>, unset "no client certificate", expect "a file of PEM certificates";
        /// PEM file of the private key of `cluster.cert_file`
        key_file: Option<PathBuf>, unset "no client certificate", expect "a file with a private key, in PEM";
        /// Maximum number of requests that wait in all gateways together; further requests get a 429
        max_jobs: NonZeroUsize = 1024, in 1..=1 << 20;
        /// Copies of the queue on different NATS servers
        replicas: NonZeroUsize = 1, in 1..=5;
        /// Where the NATS server keeps the queue: `file` survives its restart; after `memory` the gateways publish it again
        storage: QueueStorage = "file", expect "file or memory";
        /// Time for a node to claim a request, after which another node may
        claim_ms: Millis = 2000, in 100..=60_000;
        /// Silence of a node after which the gateway asks whether it still runs the request
        probe_ms: Millis = 250, in 50..=60_000;
        /// Silence of a node after which another node continues the request
        lost_ms: Millis = 2000, in 200..=600_000;
        /// Interval at which nodes report to gateways
        beat_ms: Millis = 500, in 50..=60_000;
        /// Number of nodes that a request may lose before it fails
        max_losses: NonZeroU32 = 3, in 1..=100;
        /// Whether a request goes to the node that has the beginning of its prompt in its prompt cache: `off`, `idle` if that node
        /// is free, or `worth` if it is free before another node could have read the beginning
        affinity: AffinityMode = "idle", expect "off, idle or worth";
        /// What a node does with its running requests when it stops: `finish` completes them within `server.grace_ms`,
        /// `hand-over` lets other nodes continue them at the next token
        drain: DrainMode = "finish", expect "finish or hand-over";
    }
}
