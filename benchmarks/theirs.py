"""One job of TRL or transformers in a process of its own, in TRL's environment: paced as ours is, see pace.py.

    benchmarks/.venv-trl/bin/python benchmarks/theirs.py sft --model FOLDER --data FILE --what JSON --setting JSON

Trainers are used as their documentation shows; a callback waits for the word between two steps, so collating,
generating, logging and the trainer's own bookkeeping are inside the time, as ours are. compare.py starts it.
"""

import argparse
import copy
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import torch  # noqa: E402 - after the environment
import transformers  # noqa: E402
from datasets import Dataset  # noqa: E402
from pace import Pace, read_plan  # noqa: E402
from rewards import even_words  # noqa: E402
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402


class Paced(transformers.TrainerCallback):
    """Waits before each step, and says what it took."""

    def __init__(self, pace: Pace, args: argparse.Namespace):
        self.pace, self.args = pace, args
        self.tokens = 0  # of the step, counted by whoever sees them
        self.watched: dict = {}

    def watch(self, model: torch.nn.Module) -> None:
        """The trained model."""
        self.pace.facts["parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self.model = model
        if self.args.probe:
            self.watched = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_train_begin(self, _args, state, control, **_):
        """Before the first step."""
        self.pace.begin(state.global_step)

    def on_step_end(self, _args, state, control, **_):
        """A step is done; the next begins here, so nothing between the two is left out."""
        if not self.args.probe or self.args.job == "ppo":
            self.turn(state.global_step)

    def on_log(self, _args, state, _control, logs=None, **_):
        """In a probe every step is logged, and only then its loss is known."""
        if self.args.probe and "loss" in (logs or {}):
            self.turn(state.global_step, loss=logs["loss"])

    def turn(self, done: int, **more) -> None:
        """Say what the step took, and begin the next."""
        if self.args.probe:
            now = dict(self.model.named_parameters())
            total = sum((now[n].detach() - w).double().square().sum() for n, w in self.watched.items())
            more |= {"moved": float(total**0.5), "updates": self.pace.updates.most}
        self.pace.end(done - 1, self.tokens, **more)
        self.tokens = 0
        self.pace.begin(done)


def counting(trainer, paced: Paced):
    """A trainer whose real tokens are counted as they are trained on (its loader collates a batch ahead)."""
    inner = trainer.training_step

    def counted(model, inputs, *rest, **more):
        mask = inputs.get("attention_mask")
        paced.tokens += int(inputs["input_ids"].numel() if mask is None else mask.sum())
        return inner(model, inputs, *rest, **more)

    trainer.training_step = counted
    return trainer


def settings(args: argparse.Namespace, what: dict) -> dict:
    """What all configs are given: our batch, our optimizer, nothing written; then the setting that is measured."""
    return {
        "output_dir": args.scratch,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "use_cpu": args.device == "cpu",
        "bf16": args.precision == "bfloat16",
        "seed": args.seed,
        "max_steps": args.steps,
        "per_device_train_batch_size": what["rows"] * what["samples"],
        "logging_steps": 1 if args.probe else 10,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
    } | json.loads(args.setting)


def supervised(args, what: dict, plan: list[dict], paced: Paced):
    """SFT on ids; all tokens are learned."""
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**{"train_sampling_strategy": "sequential"} | settings(args, what))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    rows = Dataset.from_list([{"input_ids": ids} for step in plan for ids in step["rows"]])
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, callbacks=[paced])
    return counting(trainer, paced)


def reward(args, what: dict, plan: list[dict], paced: Paced):
    """A reward model on ids of pairs."""
    from trl import RewardConfig, RewardTrainer

    config = RewardConfig(**{"train_sampling_strategy": "sequential"} | settings(args, what))
    model = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32, num_labels=1)
    ids = [row["ids"] for step in plan for row in step["rows"]]
    rows = Dataset.from_list([{"chosen_ids": a + good, "rejected_ids": a + bad} for a, good, bad in ids])
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    trainer = RewardTrainer(model, config, train_dataset=rows, processing_class=tokenizer, callbacks=[paced])
    return counting(trainer, paced)


def preference(args, what: dict, plan: list[dict], paced: Paced):
    """DPO on conversations; their ids must come out as ours."""
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(**{"train_sampling_strategy": "sequential"} | settings(args, what))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    wanted = [row for step in plan for row in step["rows"]]
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{part: [{"role": role, "content": row["text"][part]}] for part, role in roles.items()} for row in wanted]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    trainer = DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[paced]
    )
    made = trainer.train_dataset
    for i, row in enumerate(wanted):
        if [made[i]["prompt_ids"], made[i]["chosen_ids"], made[i]["rejected_ids"]] != row["ids"]:
            sys.exit(f"pair {i} has other ids here than in posttrain: the comparison would be of different data")
    return counting(trainer, paced)


def group(args, what: dict, plan: list[dict], paced: Paced):
    """GRPO or RLOO with a cheap reward."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    Config, Trainer = (GRPOConfig, GRPOTrainer) if args.job == "grpo" else (RLOOConfig, RLOOTrainer)
    own = {"beta": 0.0} if args.job == "grpo" else {"beta": 0.03}
    own |= {"num_generations": what["samples"], "max_completion_length": what["answer"], "shuffle_dataset": False}
    config = Config(**own | settings(args, what))
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    chats = [[{"role": "user", "content": row["text"]}] for step in plan for row in step["rows"]]
    check_prompts(tokenizer, chats, [row["ids"] for step in plan for row in step["rows"]])

    def graded(completions, completion_ids, **_):
        paced.tokens += sum(map(len, completion_ids))
        return [even_words(said[0]["content"]) for said in completions]

    rows = Dataset.from_list([{"prompt": chat} for chat in chats])
    return Trainer(model, graded, config, train_dataset=rows, processing_class=tokenizer, callbacks=[paced])


def check_prompts(tokenizer, chats: list, wanted: list[list[int]]) -> None:
    """Prompts must be the same ids as ours."""
    for chat, ids in zip(chats, wanted, strict=True):
        made = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
        if list(made) != ids:
            sys.exit(f"a prompt has other ids here than in posttrain: {list(made)} and {ids}")


def proximal(args, what: dict, plan: list[dict], paced: Paced):
    """PPO (trl 1.10.0) with a reward that costs nothing."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    own = settings(args, what)
    episodes = args.steps * own["per_device_train_batch_size"] * own.get("gradient_accumulation_steps", 1)
    own |= {"response_length": what["answer"], "temperature": 1.0, "num_ppo_epochs": what["epochs"]}
    config = PPOConfig(**own | {"total_episodes": episodes, "num_sample_generations": 0, "num_mini_batches": 1})
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(args.model, dtype=torch.float32, num_labels=1)
    rows = Dataset.from_list([{"input_ids": row["ids"]} for step in plan for row in step["rows"]])
    trainer = PPOTrainer(
        config, tokenizer, model, copy.deepcopy(model), EvenLast(), rows, value, eval_dataset=rows.select([0]),
        callbacks=[paced],
    )  # fmt: skip
    per_step = what["rows"] * what["samples"] * what["answer"]

    class Count(transformers.TrainerCallback):
        """Every answer has full length here, since no stop token is set."""

        def on_step_end(self, *_args, **_):
            paced.tokens = per_step

    trainer.callback_handler.callbacks.insert(0, Count())
    return trainer


class EvenLast(torch.nn.Module):
    """A reward model in form only: whether the last token's id is even."""

    base_model_prefix = "backbone"

    def __init__(self):
        super().__init__()
        self.backbone = self.Backbone()
        self.score = torch.nn.Identity()

    class Backbone(torch.nn.Module):
        """Ids in, one "hidden state" of one number out."""

        def forward(self, input_ids, **_):
            """As transformers models answer."""
            even = (input_ids % 2 == 0).float()[..., None]
            return transformers.modeling_outputs.BaseModelOutput(hidden_states=(even,))


def sample(args, what: dict, plan: list[dict], pace: Pace) -> None:
    """`generate` as a user calls it: padded on the left, sampled at temperature 1, to a fixed length."""
    at_once = int(args.job.removeprefix("sample-"))
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.precision)).eval()
    model.to(args.device)
    model.generation_config.eos_token_id = None
    pace.facts["parameters"] = sum(p.numel() for p in model.parameters())
    own = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": what["answer"]}
    torch.manual_seed(args.seed)
    for step in range(args.steps):
        batch = [row["ids"] for row in plan[step]["rows"]]
        tokens = 0
        pace.begin(step)
        for start in range(0, len(batch), at_once):
            asked = tokenizer.pad({"input_ids": batch[start : start + at_once]}, return_tensors="pt").to(args.device)
            with torch.inference_mode():
                out = model.generate(**asked, **own | json.loads(args.setting), pad_token_id=tokenizer.pad_token_id)
            tokens += out[:, asked["input_ids"].shape[1] :].numel()
        pace.end(step, tokens)


TRAINERS = {"sft": supervised, "rm": reward, "dpo": preference, "grpo": group, "rloo": group, "ppo": proximal}


def main() -> None:
    """Arguments as compare.py gives them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job")
    for name in ("--model", "--data", "--scratch"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--what", required=True, help="a record of inputs.JOBS as JSON")
    parser.add_argument("--setting", default="{}", help="fields of the trainer's config as JSON")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--probe", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    what, plan = json.loads(args.what), read_plan(args.data)
    if args.job.startswith("sample-"):
        sample(args, what, plan, Pace(args.warmup, args.device))
        return
    import trl.trainer.utils  # noqa: F401 - what trainers import lazily is no part of a step's memory

    paced = Paced(Pace(args.warmup, args.device), args)
    trainer = TRAINERS[args.job](args, what, plan, paced)
    paced.watch(trainer.model)
    trainer.train()


if __name__ == "__main__":
    main()
