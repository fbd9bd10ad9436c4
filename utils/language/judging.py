"""What a language model makes of a yes-or-no question, by the probabilities of its next token."""
import torch

from utils.language import loading

WAYS = (("yes", " yes", "Yes", " Yes", "YES"), ("no", " no", "No", " No", "NO"))


def yes_over_no(name: str, prompts: list[str], batch_size: int, device) -> list[float]:
    """The log-probability of yes minus that of no as the next token of each prompt, in a chat turn where the language
    model has a chat template; above 0 it says yes. Raises UserError as `loading.load_model` does."""
    from tqdm import tqdm

    tokenizer = loading.load_tokenizer(name)
    model = loading.load_model(name, loading.precision(device)).to(device).eval()
    ways = [sorted({tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts}) for texts in WAYS]
    margins = []
    for start in tqdm(range(0, len(prompts), batch_size), desc=f"prompts of {batch_size}", unit="batch"):
        ids = [loading.prompt_ids(tokenizer, prompt) if tokenizer.chat_template else tokenizer(prompt)["input_ids"]
               for prompt in prompts[start:start + batch_size]]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
        with torch.inference_mode():
            logs = model(**batch, logits_to_keep=1).logits[:, -1].float().log_softmax(-1)
        yes, no = (logs[:, tokens].logsumexp(-1) for tokens in ways)
        margins += (yes - no).tolist()
    return margins
