"""The names of all metrics: `group/name`, one meaning and one unit each.

A step's line in `metrics.jsonl` is `{"step": int, <name>: float, ...}`; TensorBoard gets the same tags.
"""

REWARD_MEAN = "reward/mean"  # of the rubric, before any KL term
REWARD_STD = "reward/std"
REWARD_BASELINE = "reward/baseline"  # of REINFORCE: the average of earlier steps, KL penalty included
REWARD_SOURCE = "reward/{source}"  # mean of what each source said, before its weight
QUARANTINED = "reward/quarantined"  # rollouts whose score failed, a count

KL_PER_TOKEN = "kl/k1_per_token"  # mean over response tokens of old_logprobs - ref_logprobs, nats
KL_PER_SEQUENCE = "kl/k1_per_sequence"  # mean over responses of the sum over tokens, nats
KL_COEF = "kl/coef"

REPLACED_PROMPTS = "rollout/replaced_prompts"  # by dynamic sampling: all answers had the same reward, a count
LAG_MEAN = "rollout/lag_mean"  # weight pushes between a response's first token and its use
LAG_MAX = "rollout/lag_max"

LENGTH_MEAN = "response/length_mean"  # tokens
TRUNCATED = "response/truncated_fraction"
ENTROPY = "policy/entropy"  # mean over response tokens, nats

POLICY_LOSS = "policy/loss"
POLICY_CLIP_FRACTION = "policy/clip_fraction"
POLICY_KL_TO_OLD = "policy/kl_to_old"  # k3 per token, over the inner epochs
FIRST_DRIFT = "policy/first_drift"  # mean |new - old| log-prob in the first minibatch, nats
REUSED_LOGPROBS = "policy/reused_logprobs"  # 1 if this step's old log-probs are the engine's
IMPORTANCE_MEAN = "importance/mean"  # p_old / p_engine of response tokens, after the cap
IMPORTANCE_CUT = "importance/cut_fraction"  # tokens at the cap
STEP_FRACTION = "policy/step_fraction"  # of TRPO: the share of the full step that its line search took

COST_MEAN = "constraint/cost_mean"  # of the cost sources, per response
MULTIPLIER = "constraint/multiplier"  # the price of a unit of cost in this step

CRITIC_LOSS = "critic/loss"
CRITIC_CLIP_FRACTION = "critic/clip_fraction"
CRITIC_EXPLAINED_VARIANCE = "critic/explained_variance"

# of both learners: {role} is policy or critic
GRAD_NORM = "{role}/grad_norm"  # before clipping
UPDATES = "{role}/updates"  # optimizer steps taken
SKIPPED_UPDATES = "{role}/skipped_updates"  # not taken, because a gradient was not finite
MISSING_GRADIENTS = "{role}/parameters_without_gradient"

FIRST_RATIO = "sentinel/first_ratio_deviation"  # max |ratio - 1| in the first minibatch
REFERENCE_GAP = "sentinel/reference_gap"  # step 0: max |policy - reference| log-prob
DRIFT_MEAN = "sentinel/rollout_drift_mean"  # |vLLM - learner| log-prob, mean and max over tokens
DRIFT_MAX = "sentinel/rollout_drift_max"
CHECKSUM_BUCKETS = "sentinel/verified_buckets"

PHASES = ("generate", "score", "logprobs", "advantages", "update", "push", "commit")
TIME_PHASE = "time/{phase}"  # seconds of the step spent waiting for this phase
TIME_STEP = "time/step"  # without its commit, which counts as time/commit of the next step
TIME_OVERHEAD = "time/overhead"  # step minus the time inside the models, vLLM, and the weight push
BUSY = "busy/{role}"  # seconds that the role's actors computed
TOKENS = "throughput/response_tokens"  # of the rollouts that were trained on

# of runs on fixed data; a line of metrics.jsonl has those of the step's batch, and at an evaluation the held-out ones
TRAIN_LOSS = "train/loss"
TRAIN_GRAD_NORM = "train/grad_norm"  # before clipping
LEARNING_RATE = "train/learning_rate"
TRAIN_ACCURACY = "train/accuracy"  # pairs whose chosen answer scores (or is implicitly rewarded) higher
TRAIN_MARGIN = "train/margin"  # mean score of chosen minus rejected
CHOSEN_REWARD = "train/chosen_reward"  # implicit: beta * log(policy / reference)
REJECTED_REWARD = "train/rejected_reward"
WITHOUT_PREFERENCE = "train/prompts_without_preference"  # of online DPO, a count: equal rewards, or one answer
TOKEN_ACCURACY = "train/token_accuracy"  # fine-tuning: answer tokens predicted rightly
TOKENS_PER_SECOND = "throughput/tokens_per_second"  # without padding
HELDOUT_LOSS = "heldout/loss"
HELDOUT_ACCURACY = "heldout/accuracy"
HELDOUT_MARGIN = "heldout/margin"
BETA = "beta/value"
BETA_KL = "beta/kl_per_sequence"  # what the controller reads, nats; smoothed
BETA_TARGET_KL = "beta/target_kl"
REWARD_GAP = "beta/reward_gap"  # of the batch, in units of log-ratio
