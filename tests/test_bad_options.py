"""What a script refuses before its work begins: numbers out of range, choices that there are not, and the table.

Each ends in one line that names the option, with exit code 2, and leaves nothing behind."""
import argparse
import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
from builders import NAMES, ROOT, SCRIPTS, load_script, picture, uneven_terms, write_classifier, write_pool, write_run

from utils import cli
from utils.data import datasets

TEXTS, LISTS = ROOT / "text_descriptions", ROOT / "configs" / "heads"
# What the lines of the table below have in common.
COMMON = {
    "compute_prs": "--model emojiclip --device cpu --output_dir {out}",
    "compute_complete_text_set": "--model emojiclip --dataset imagefolder --input_dir {runs} --output_dir {out} "
                                 "--text_dir {texts} --text_descriptions pool --num_of_last_layers 2",
    "compute_segmentations": "--model emojiclip --train_dataset masks_folder --data_path {masks} "
                             "--classifier_dataset emoji --classifier_dir {runs} --output_dir {out} --device cpu",
    "compute_heatmaps": "--device cpu --image {images}/a/0.png --output {out}/x.png",
    "compute_head_truth": "--model emojiclip --dataset emoji_seg --input_dir {runs} --output_dir {out}",
    "compute_alignment": "--model m --clip clip --dataset emoji --input_dir {runs} --output_dir {out} --device cpu",
    "compute_component_scores": "--model emojiclip --dataset emoji_seg --input_dir {runs} --output_dir {out} --truth",
    "compute_component_ablation": "--model clip --dataset emoji --input_dir {runs} --output_dir {out}",
    "compute_component_repair": "--model m-as-emojiclip --dataset emoji_spurious --input_dir {runs} --output_dir {out} "
                                "--device cpu --spurious_texts {pools}/spurious_backgrounds_emoji.txt "
                                "--core_texts {pools}/core_animals_emoji.txt",
    "compute_linear_probe": "--model m --dataset flowers --input_dir {runs} --output_dir {out}",
    "compute_nearest_neighbors": "--model emojiclip --dataset imagefolder --input_dir {runs} --data_path {images} "
                                 "--output_dir {out} --heads_file {runs}/heads.yaml --device cpu",
    "compute_retrieval": "--model emojiclip --dataset emoji_spurious --split val --input_dir {runs} --output_dir {out} "
                         "--features {runs}/features.yaml --feature color --device cpu",
    "compute_use_specific_heads": "--model emojiclip --dataset emoji_spurious --input_dir {runs} --output_dir {out} "
                                  "--device cpu",
    "make_report": "--model emojiclip --dataset imagefolder --data_path {images} --input_dir {runs} --output_dir {out} "
                   "--text_dir {texts} --text_descriptions pool --texts_per_head 3",
    "train": "--num_concepts 4 --num_images_for_reward 2 --model_name {lm} --output_dir {out} --steps 4 --batch_size 8 "
             "--per_device_batch_size 4 --num_generations 2",
    "inference": "--model_name {lm} --output_filepath {out}/d.json --num_concepts 2 --backend hf --device cpu",
    "scripts.build_class_descriptions": "--dataset emoji --model_name {lm} --output_filepath {out}/pool.txt "
                                        "--backend hf --device cpu",
    "scripts.sweep_textspan": "--model emojiclip --dataset imagefolder --input_dir {runs} --output_dir {out} "
                              "--text_dir {texts}",
    "models.emojivit.train": "--output_dir {out}",
}
BY_TEXTS = ("--select texts --spurious_texts {pools}/spurious_backgrounds_emoji.txt "
            "--core_texts {pools}/core_animals_emoji.txt")
# Script, options, and a part of the line.
TABLE = [
    ("compute_prs", "--dataset imagenot", "invalid choice"),
    ("compute_prs", "--model RN50 --pretrained none --check", "it is a ResNet"),
    ("compute_prs", "--model ViT-L-41 --dataset emoji", "unknown model"),
    ("compute_prs", "--dataset imagefolder --data_path nowhere", "no such folder"),
    ("compute_prs", "--device cuda:7 --dataset emoji", "--device cuda:7 cannot be used here"),
    ("compute_prs", "--device tpu --dataset emoji", "--device tpu cannot be used here"),
    ("compute_prs", "--dataset emoji --moments_only --compact", "--moments_only keeps nothing before its end"),
    ("compute_prs", "--dataset emoji --moments_only --resume", "--moments_only keeps nothing before its end"),
    ("compute_prs", "--dataset emoji --model timm:local-dir:{root}/models/emojivit --compact",
     "known of open_clip's own vision transformers"),
    ("compute_prs", "--check --model timm:vit_tiny_patch16_225",
     "unknown model 'timm:vit_tiny_patch16_225'; closest are timm:vit_"),
    ("compute_prs", "--check --model timm:vit_tiny_patch16_224 --pretrained nothing",
     "no such weights of vit_tiny_patch16_224; give one of augreg"),
    ("compute_prs", "--check --model timm:vit_tiny_patch16_224.nothing",
     "timm has no such weights of vit_tiny_patch16_224"),
    ("compute_prs", "--check --model timm:resnet18 --pretrained none", "cannot be decomposed: aten.relu"),
    ("compute_prs", "--check --model timm:local-dir:nowhere", "no config.json there"),
    ("compute_prs", "--check --model timm:hf-hub:timm/x --pretrained none", "brings its own weights"),
    ("compute_prs", "--dataset huggingface", "needs --data_path"),
    ("compute_prs", "--dataset huggingface --data_path {images}/nothing", "datasets cannot load it"),
    ("compute_prs", "--dataset emoji --streaming", "--streaming goes with --dataset huggingface"),
    ("compute_text_projection", "--dataset emoji --model timm:vit_tiny_patch16_224 --output_dir {out}",
     "has no text side; this step needs a CLIP"),
    ("compute_ablations", "--model ViT-H-14 --input_dir {runs}",
     "make them with: python compute_prs.py --dataset imagenet --model ViT-H-14 --data_path DIR"),
    ("compute_complete_text_set", "--num_of_last_layers 7", "--num_of_last_layers is 7; choose from 1 to 6"),
    ("compute_complete_text_set", "--num_of_last_layers 0", "--num_of_last_layers is 0; it must be at least 1"),
    ("compute_complete_text_set", "--texts_per_head 0", "--texts_per_head is 0"),
    ("compute_complete_text_set", "--w_ov_rank 0", "--w_ov_rank is 0"),
    ("compute_complete_text_set", "--text_descriptions nothing", "nothing.txt does not exist"),
    ("compute_segmentations", "--image_size 60", "nearest are 56 and 64"),
    ("compute_segmentations", "--image_size 0", "--image_size is 0"),
    ("compute_segmentations", "--thr 2", "--thr is 2"),
    ("compute_segmentations", "--batch_size 0", "--batch_size is 0"),
    ("compute_segmentations", "--method lime", "invalid choice"),
    ("compute_segmentations", "--mask_resize cut", "invalid choice"),
    ("compute_heatmaps", "--model emojiclip", "required: --text"),
    ("compute_heatmaps", "--model emojiclip --text ' '", "--text is empty; give it a value"),
    ("compute_heatmaps", "--model emojiclip --text a ''", "--text is empty; give it a value"),
    ("compute_heatmaps", "--model emojiclip --text a b c d e f g h i j k l m n o p q r s t u v w x y z",
     "26 texts, and a picture has room for 24"),
    ("compute_heatmaps", "--model emojiclip --text a --head 1", "a head needs its layer"),
    ("compute_heatmaps", "--model emojiclip --text a --output x.jpg", "end in .png"),
    ("compute_heatmaps", "--model emojiclip --text a --layer two", "--layer is 'two'; it must be a whole number"),
    ("compute_heatmaps", "--model emojiclip --text a --layer 6", "layer 6: the model's layers"),
    ("compute_heatmaps", "--model emojiclip --text a --layer -1", "--layer is -1; it must be at least 0"),
    ("compute_heatmaps", "--model emojiclip --text a --layer 5 --head 6", "head 6: layer 5 has 6"),
    ("compute_heatmaps", "--model emoji --text a", "unknown model"),
    ("compute_heatmaps", "--model RN50 --pretrained none --text a", "ResNet"),
    ("compute_head_truth", "--dataset imagenet", "the truth of its images is not known; it is of emoji, "),
    ("compute_head_truth", "--texts_per_head 7",
     " && python compute_complete_text_set.py --model emojiclip --dataset emoji_seg"),
    ("compute_head_names", "--compare_dataset emoji", "--compare_dataset says what --compare is on"),
    ("compute_head_names", "--attributes none.yaml", "none.yaml: cannot be read"),
    ("compute_head_names", "--refine 0", "--refine is 0; it must be at least 1"),
    ("compute_heatmaps", "--model emojiclip --text a --layer 1 --names x.json", "--names says what a single head"),
    ("compute_logit_attribution", "--classes a b c", "--classes names 3"),
    ("compute_use_specific_heads", "--select names", "--select names needs --attribute"),
    ("compute_use_specific_heads", "--select describe", "--select describe needs --task"),
    ("compute_use_specific_heads", "--select sith", "--select sith needs --attribute, such as"),
    ("compute_use_specific_heads", "--select textspan --attribute color", "--select textspan needs --attributes, such"),
    ("compute_use_specific_heads", "--select auto --task x", "--task goes with --select describe"),
    ("compute_alignment", "--split val",
     "emoji_val_attn_clip.npy do not exist; make them with: python compute_prs.py --dataset emoji --model m"),
    ("compute_alignment", "--clip other", "emoji_train_attn_other.npy does not exist"),
    ("compute_alignment", "--apply val", "emoji_val_attn_m.npy does not exist"),
    ("compute_alignment", "--epochs 0", "--epochs is 0; it must be at least 1"),
    ("compute_alignment", "--batch_size 0", "--batch_size is 0; it must be from 1 to 10000"),
    ("compute_alignment", "--lr 0", "--lr is 0; it must be above 0"),
    ("compute_alignment", "--lr nan", "--lr is nan"),
    ("compute_alignment", "--penalty_weight -1", "--penalty_weight is -1; it must be at least 0"),
    ("compute_alignment", "--lr 1e30", "the training diverged in epoch 1; give a smaller --lr than 1e+30"),
    ("compute_component_scores", "--dataset imagenet",
     "--truth: that of the images of imagenet is not known; it is of emoji, "),
    ("compute_component_scores", "--features {runs}/animals.yaml",
     "has no feature that is known of scenes; these are object, "),
    ("compute_component_scores", "--features none.yaml", "none.yaml: cannot be read"),
    ("compute_component_scores", "--split val", "--split val"),
    ("compute_component_ablation", "--model clip none",
     "emoji_classifier_none.npy do not exist; make them with: python compute_prs.py --dataset emoji --model none"),
    ("compute_component_ablation", "--split train --probe", "the probe is fitted on it"),
    ("compute_component_ablation", "--split val", "--split val"),
    ("compute_component_repair", "--dataset emoji",
     "--dataset emoji has no groups to repair; binary_waterbirds and emoji_spurious have places"),
    ("compute_component_repair", "--select_split test",
     "--select_split test is the split that is reported; choose components on another, such as val"),
    ("compute_component_repair", "--split val",
     "--select_split val is the split that is reported; choose components on another, such as train"),
    ("compute_component_repair", "--split train --classifier probe", "--split train: the probe is fitted on it"),
    ("compute_component_repair", "--components 0", "--components is 0"),
    ("compute_component_repair", "--components 13", "--components is 13; choose from 1 to 12"),
    ("compute_component_repair", "--random_trials 0", "--random_trials is 0"),
    ("compute_component_repair", "--source_model m", "--source_model goes with --classifier probe"),
    ("compute_component_repair", "--classifier probe --source_model n",
     "does not exist; make it with: python compute_prs.py"),
    ("compute_component_repair", "--core_texts nothing.txt", "nothing.txt does not exist"),
    ("compute_component_repair", "--model n-as-emojiclip", "python compute_alignment.py"),
    ("compute_component_repair", "--model timm:local-dir:{root}/models/emojivit --classifier probe",
     "has no text side to score components by; map it"),
    ("compute_component_repair", "--spurious_texts {pools}/emoji_descriptions.txt", "409 texts span more"),
    ("compute_linear_probe", "--keep_last_layers 0", "--keep_last_layers is 0; it must be at least 1"),
    ("compute_linear_probe", "--keep_last_layers 5", "--keep_last_layers is 5; choose from 1 to 3"),
    ("compute_linear_probe", "--split train", "the probe is fitted on it"),
    ("compute_linear_probe", "--dataset emoji_seg", "emoji_seg has no split 'train'; there are test"),
    ("compute_linear_probe", "--dataset emoji_unseen_style", "emoji_unseen_style has no split 'train'; there are test"),
    ("compute_nearest_neighbors", "", "either by --index or by --image"),
    ("compute_nearest_neighbors", "--index 1 --image x.png", "either by --index or by --image"),
    ("compute_nearest_neighbors", "--index 20", "--index 20: the run has the images 0 to 19"),
    ("compute_nearest_neighbors", "--index 2 -1", "--index is -1; it must be at least 0"),
    ("compute_nearest_neighbors", "--index one", "--index is 'one'; it must be a whole number"),
    ("compute_nearest_neighbors", "--index 1 --neighbors 0", "--neighbors is 0"),
    ("compute_nearest_neighbors", "--index 1 --neighbors 41", "--neighbors is 41; it must be from 1 to 40"),
    ("compute_nearest_neighbors", "--index 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 0 --property whole color",
     "21 queries by 2 ways of comparing make 42 rows"),
    ("compute_nearest_neighbors", "--index 1 --heads 6.0",
     "--heads: there is no head 6.0; the model has layers 0 to 5"),
    ("compute_nearest_neighbors", "--index 1 --heads 5", "--heads: '5' is no head"),
    ("compute_nearest_neighbors", "--index 1 --property colour",
     "heads.yaml has no such role; choose from whole, color, object"),
    ("compute_nearest_neighbors", "--image nothing.png", "--image nothing.png: no such file"),
    ("compute_nearest_neighbors", "--index 1 --data_path nowhere", "nowhere: no such folder"),
    ("compute_nearest_neighbors", "--index 1 --split val", "--split val"),
    ("compute_retrieval", "", "either by --text or by --index"),
    ("compute_retrieval", "--text a --index 1", "either by --text or by --index"),
    ("compute_retrieval", "--text a --feature colour", "--feature colour: "),
    ("compute_retrieval", "--index 400", "the run has the images 0 to 399"),
    ("compute_retrieval", "--index -1", "--index is -1"),
    ("compute_retrieval", "--text a --components 0", "--components is 0"),
    ("compute_retrieval", "--text a --components 44", "--components is 44; choose from 1 to 43"),
    ("compute_retrieval", "--text a --neighbors 41", "--neighbors is 41; it must be from 1 to 40"),
    ("compute_retrieval", "--index 1 --source_model m", "--source_model goes with --index and a mapped model"),
    ("compute_retrieval", "--text a b c d e f g h i j k l m n o p q r s t u",
     "21 queries by 2 ways of comparing make 42 rows"),
    ("compute_retrieval", "--text a --features nothing.yaml", "nothing.yaml: cannot be read"),
    ("compute_retrieval", "--text a --pretrained openai", "--pretrained openai does not go with"),
    ("compute_retrieval", "--text a --split train", "does not exist; make it with: python compute_prs.py"),
    ("compute_use_specific_heads", "--heads 6.0",
     "--heads: there is no head 6.0; the model has layers 0 to 5 with heads 0 to 5"),
    ("compute_use_specific_heads", "--heads 5.6", "there is no head 5.6"),
    ("compute_use_specific_heads", "--heads five", "'five' is no head"),
    ("compute_use_specific_heads", "--heads ''", "--heads is empty; give it a value"),
    ("compute_use_specific_heads", "--heads 5.4,1.3",
     "head 1.3 is in a layer that is ablated in any case; leave it out, or keep its layer with --keep_last_layers 5"),
    ("compute_use_specific_heads", "--heads_file {lists}/binary_waterbirds_ViT-L-14.yaml", "lists heads of ViT-L-14"),
    ("compute_use_specific_heads", "--heads_file nothing.yaml", "nothing.yaml: no such list of heads"),
    ("compute_use_specific_heads", "--roles places", "--roles places: "),
    ("compute_use_specific_heads", "--heads 5.4 --roles color",
     "--roles goes with a list of heads, and not with --heads"),
    ("compute_use_specific_heads", "--select auto --roles color",
     "--roles goes with a list of heads, and not with --select"),
    ("compute_use_specific_heads", "--heads 5.4 --select auto",
     "--heads and --select both choose heads; give one of them"),
    ("compute_use_specific_heads", "--heads 5.4 --heads_file x.yaml", "--heads and --heads_file both choose heads"),
    ("compute_use_specific_heads", f"--heads_file x.yaml {BY_TEXTS}", "--heads_file and --select both choose heads"),
    ("compute_use_specific_heads", "--select texts", "--select texts needs --spurious_texts and --core_texts"),
    ("compute_use_specific_heads", "--select texts --spurious_texts {pools}/spurious_backgrounds_emoji.txt",
     "--select texts needs --spurious_texts and --core_texts"),
    ("compute_use_specific_heads", "--select auto --spurious_texts {pools}/spurious_backgrounds_emoji.txt",
     "--spurious_texts goes with --select texts"),
    ("compute_use_specific_heads", "--heads 5.4 --core_texts {pools}/core_animals_emoji.txt",
     "--core_texts goes with --select texts"),
    ("compute_use_specific_heads", "--heads 5.4 --number_of_heads 3",
     "--number_of_heads goes with --select auto, texts, textspan, sith, names or describe"),
    ("compute_use_specific_heads", "--select_split val",
     "--select_split goes with --select auto, texts, textspan, sith, names or describe"),
    ("compute_use_specific_heads", "--select auto --select_split test",
     "--select_split test is the split that is reported"),
    ("compute_use_specific_heads", "--select auto --split val",
     "--select_split val is the split that is reported; choose components on another, such as train"),
    ("compute_use_specific_heads", "--select auto --select_split train",
     "make it with: python compute_prs.py --dataset emoji_spurious --model emojiclip --output_dir"),
    ("compute_use_specific_heads", "--select auto --number_of_heads 0", "--number_of_heads is 0; "),
    ("compute_use_specific_heads", "--select auto --number_of_heads 24", "--number_of_heads is 24, and only "),
    ("compute_use_specific_heads", f"{BY_TEXTS} --number_of_heads 25", "--number_of_heads is 25; choose from 1 to 24"),
    ("compute_use_specific_heads", f"{BY_TEXTS} --spurious_texts nothing.txt", "nothing.txt does not exist"),
    ("compute_use_specific_heads", f"{BY_TEXTS} --pretrained openai",
     "--pretrained openai does not go with --model emojiclip"),
    ("compute_use_specific_heads", f"{BY_TEXTS} --spurious_texts {{pools}}/emoji_descriptions.txt",
     "409 texts span more than the 128"),
    ("compute_use_specific_heads", "--heads 5.4 --keep_last_layers 0", "--keep_last_layers is 0; "),
    ("compute_use_specific_heads", "--heads 5.4 --keep_last_layers 7", "--keep_last_layers is 7; choose from 1 to 6"),
    ("compute_use_specific_heads", "--heads 5.4 --random_trials 0", "--random_trials is 0; it must be from 1 to 10000"),
    ("compute_use_specific_heads", "--dataset emoji --select auto",
     "--select needs groups, and --dataset emoji has none; binary_waterbirds and emoji_spurious have places"),
    ("make_report", "--images_per_head 0", "--images_per_head is 0; it must be at least 1"),
    ("make_report", "--thumbnail_size 0", "--thumbnail_size is 0"),
    ("make_report", "--heat_maps -1", "--heat_maps is -1"),
    ("make_report", "--heat_maps 9", "choose from 0 to 8"),
    ("make_report", "--texts_per_head 4", "python compute_ablations.py --model emojiclip --dataset imagefolder"),
    ("make_report", "--text_descriptions none", "none.txt does not exist"),
    ("train", "--steps 0", "--steps is 0; it must be from 1 to "),
    ("train", "--epochs_per_batch 0", "--epochs_per_batch is 0; it must be at least "),
    ("train", "--max_new_tokens 0", "--max_new_tokens is 0; it must be from 1 to "),
    ("train", "--log_freq 0", "--log_freq is 0; it must be at least "),
    ("train", "--lora_r 0", "--lora_r is 0; it must be from 1 to "),
    ("train", "--batch_size 0", "--batch_size is 0; it must be from 1 to "),
    ("train", "--per_device_batch_size 0", "--per_device_batch_size is 0; it must be from 1 to "),
    ("train", "--num_generations 1", "--num_generations is 1; it must be from 2 to 10000"),
    ("train", "--batch_size 6",
     "--batch_size 6 must be a multiple of --num_generations 2 and of --minibatch_size 8"),
    ("train", "--num_generations 3", "--batch_size 8 must be a multiple of --num_generations 3 "),
    ("train", "--per_device_batch_size 5",
     "of --minibatch_size 8, and that of --per_device_batch_size 5 (times 1 processes)"),
    ("train", "--load_in_8bit --load_in_4bit", "--load_in_8bit and --load_in_4bit exclude each other"),
    ("train", "--load_in_4bit --use_vllm", "--use_vllm does not go with --load_in_4bit"),
    ("train", "--class_names {runs}/questions.txt", "questions.txt holds 2 names, and emoji has 260 classes"),
    ("train", "--resume", "holds no run to resume; leave --resume out to begin one"),
    ("train", "--vlm_name emojiclip", "closest are r-open-clip:emojiclip"),
    ("train", "--model_name {out}/nowhere", "nowhere cannot be loaded"),
    ("train", "--dataset_name cub", "the data set cub needs --data_root"),
    ("train", "--num_concepts 261", "there are 260 concepts"),
    ("train", "--questions {runs}/questions.txt", "'What is it?' lacks {{concept}}"),
    ("inference", "--batch_size 0", "--batch_size is 0"),
    ("inference", "--batch_size -1", "--batch_size is -1"),
    ("inference", "--max_new_tokens 0", "--max_new_tokens is 0"),
    ("inference", "--max_new_tokens -1", "--max_new_tokens is -1"),
    ("inference", "--num_concepts 0", "--num_concepts is 0"),
    ("inference", "--num_concepts 261", "there are 260 concepts"),
    ("inference", "--score emojiclip", "closest are r-open-clip:emojiclip"),
    ("inference", "--score r-open-clip:ViT-L-14:laion2b", "ViT-L-14 has no weights 'laion2b'; closest are "),
    ("inference", "--backend server", "--backend server needs --base_url, such as http://localhost:8000/v1"),
    ("inference", "--eval_dataset cub", "the data set cub needs --data_root"),
    ("inference", "--eval_dataset pets --data_root nowhere", "nowhere: no such folder"),
    ("inference", "--split all", "emoji has no split 'all'"),
    ("inference", "--questions {runs}/questions.txt", "'What is it?' lacks {{concept}}"),
    ("inference", "--questions nowhere.txt", "nowhere.txt does not exist"),
    ("inspect", "--input_filepath {images}/d.jsonl", "does not exist"),
    ("inspect", "", "name descriptions with --input_filepath"),
    ("inspect", "--concurrency 0", "--concurrency is 0"),
    ("inspect", "--max_requests 0", "--max_requests is 0"),
    ("inspect", "--max_retries -1", "--max_retries is -1"),
    ("inspect", "--timeout 0", "--timeout is 0"),
    ("scripts.build_class_descriptions", "--num_classes 0", "--num_classes is 0; it must be at least 1"),
    ("scripts.build_class_descriptions", "--num_classes 261", "choose from 1 to 260"),
    ("scripts.build_class_descriptions", "--dataset cub", "--dataset cub needs --data_path"),
    ("scripts.build_class_descriptions", "--output_filepath {out}/pool.json", "let the name end with .txt"),
    ("scripts.build_class_descriptions", "--questions nowhere.txt", "nowhere.txt does not exist"),
    ("scripts.build_class_descriptions", "--backend server", "--backend server needs --base_url"),
    ("scripts.build_class_descriptions", "--batch_size 0", "--batch_size is 0"),
    ("scripts.build_class_descriptions", "--max_new_tokens 0", "--max_new_tokens is 0"),
    ("scripts.build_class_descriptions", "--model_name nowhere.gguf", "nowhere.gguf does not exist"),
    ("scripts.sweep_textspan", "--pools pool few --texts_per_head 10 31",
     "--texts_per_head 31: few has 30 texts; choose from 1 to 30"),
    ("scripts.sweep_textspan", "--pools few --texts_per_head 0", "--texts_per_head is 0; it must be at least 1"),
    ("scripts.sweep_textspan", "--pools few --texts_per_head many",
     "--texts_per_head is 'many'; it must be a whole number"),
    ("scripts.sweep_textspan", "--pools few nothing --texts_per_head 5", "nothing.txt does not exist"),
    ("scripts.sweep_textspan", "--pools few --texts_per_head 5 --num_of_last_layers 7",
     "--num_of_last_layers is 7; choose from 1 to 6"),
    ("scripts.sweep_textspan", "--pools few --texts_per_head 5 --num_of_last_layers 0", "it must be at least 1"),
    ("scripts.sweep_textspan", "--pools few --texts_per_head 5 --split train",
     "imagefolder_train_attn_emojiclip.npy does not exist"),
    ("models.emojivit.train", "", "no config.json"),
    ("models.emojivit.train", "--steps 0", "--steps is 0"),
    ("models.emojivit.train", "--eval_every 0", "--eval_every is 0"),
    ("models.emojivit.train", "--eval_scenes 0", "--eval_scenes is 0"),
    ("models.emojivit.train", "--batch_size 63", "it must be from 64 to 10000"),
]


def actions(parser: argparse.ArgumentParser, before=()) -> list[tuple]:
    """Every option of a script, with the words that lead to it, and the parser that takes it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return [one for word, inner in action.choices.items() for one in actions(inner, [*before, word])]
    return [(list(before), action, parser) for action in parser._actions if action.option_strings[1:] != ["--help"]
            and action.option_strings]


def bad_words(action: argparse.Action, file: Path) -> list[list[str]]:
    """What an option refuses on the command line, whatever script it is of; `file` is one that is there."""
    option, kind, metavar = action.option_strings[-1], action.type, str(action.metavar)
    if action.nargs == 0:
        return [[f"{option}=True"]]
    bad = ["", " "] if kind is None else []
    if isinstance(kind, cli.Number):
        bad = ["", "many", "nan", "inf", "-inf", "9" * 5000, "1e400", "0x10"]
        bad += [str(kind.low if kind.above else kind.low - 1)] + [str(kind.high + 1)] * (kind.high < float("inf"))
        bad += ["2.5", "2147483648" + "0" * 20, "true"] if kind.kind is int else []
    if kind is cli.boolean:
        bad = ["", "maybe", "1", "yes"]
    if action.choices:
        bad += ["nothing", "Nothing else"]
    if metavar.startswith(("FILE", "X.")):
        bad += [str(file.parent), str(file / "x")]
    if metavar == "FOLDER":
        bad += [str(file), str(file / "x")]
    several = action.nargs if isinstance(action.nargs, int) else 1
    return [[option, *[value] * several] for value in bad]


def bad_lines(action: argparse.Action) -> list[str]:
    """What an option refuses in a settings file: values of another kind than its own, as YAML."""
    texts = ["5", "1.5", "true", "no", "2026-01-02"]
    kind = action.type
    if action.nargs == 0 or kind is cli.boolean:
        bad = ["5", "1.5", "maybe", "'true'", "[true]", "{a: true}", "2026-01-02", "''"]
    elif isinstance(kind, cli.Number):
        bad = ["true", "no", "many", "'5'", "{a: 5}", "[[5]]", "2026-01-02", "''", ".nan", "1:30", "[5, null]"]
        bad += ["5.5", "5.0", "1e2"] if kind.kind is int else []
    else:
        bad = [*texts, "{a: b}", "[[a]]", "[a, null]", "[a, {b: c}]"]
    if isinstance(action.nargs, int) and action.nargs:
        bad += ["5", "[5, 5]"]
    return [f"# a comment\n\n{action.dest}: {value}\n" for value in bad]


def test_every_batch_and_every_number_of_tokens_has_an_end():
    every = [(name, action) for name in SCRIPTS for _, action, _ in actions(load_script(name).get_args_parser())]
    sizes = [(name, action) for name, action in every if action.dest.endswith("batch_size")
             or action.dest in ("registers", "max_new_tokens", "max_tokens")]
    endless = [f"{name} --{action.dest}" for name, action in sizes
               if not (isinstance(action.type, cli.Number) and action.type.high <= cli.SIZE.high)]
    assert len(sizes) > 10
    assert endless == []


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_option_takes_a_value_of_another_kind(name, tmp_path):
    parser, tried, wrong = load_script(name).get_args_parser(), 0, []
    file, settings = tmp_path / "file", tmp_path / "s.yaml"
    file.write_text("a file")
    for _, action, _ in actions(parser):
        action.required = False  # what is bad alone is to be seen
    for before, action, _ in actions(parser):
        for words in bad_words(action, file):
            tried += 1
            try:
                cli.parse(parser, [*before, *words])
                wrong.append((words, "taken"))
            except cli.UserError as error:
                if action.option_strings[-1] not in str(error) or "\n" in str(error):
                    wrong.append((words, str(error)))
        for line in bad_lines(action) if action.dest != "config" else []:
            tried += 1
            settings.write_text(line)
            try:
                cli.parse(parser, [*before, "--config", str(settings)])
                wrong.append((line, "taken"))
            except cli.UserError as error:
                if f"{settings}, line 3: {action.dest} " not in str(error) or "\n" in str(error):
                    wrong.append((line, str(error)))
    assert wrong == []
    assert tried > 20
    assert sorted(tmp_path.iterdir()) == [file, settings]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of small random runs, of texts and of pictures: where the options of the table point."""
    from utils.models.loading import load

    folder = tmp_path_factory.mktemp("places")
    runs, texts, rng = folder / "runs", folder / "texts", np.random.default_rng(0)
    own = {"weights_sha256": load("emojiclip", None, "cpu").weights_hash, "pretrained": "emojiclip"}
    spurious = {"classes": list(datasets.SPURIOUS_CLASSES)}

    def terms(images, layers, heads, d):
        return {"attn": rng.normal(size=(images, layers, heads, d)), "mlp": rng.normal(size=(images, layers + 1, d))}

    for name in ("a", "b"):
        for i in range(10):
            picture(folder / "images" / name / f"{i}.png")
    for kind in ("images", "masks"):
        picture(folder / "masks" / kind / "x.png")
    write_run(runs, "imagefolder", "emojiclip", terms(20, 6, 6, 8), np.repeat([0, 1], 10), **own)
    write_classifier(runs, "imagefolder", "emojiclip", rng.normal(size=(8, 2)), **own)
    texts.mkdir()
    for name, number in (("pool", 40), ("few", 30)):
        lines = [f"text {i}" for i in range(number)]
        (texts / f"{name}.txt").write_text("\n".join(lines) + "\n")
        write_pool(runs, name, "emojiclip", lines, rng.normal(size=(number, 8)), **own)
    text = {"text_model": "emojiclip", "text_option": "emojiclip", "text_pretrained": "emojiclip",
            "text_weights_sha256": own["weights_sha256"], "source_model": "m"}
    for split, run in (("train", "emoji_spurious_train"), ("val", "emoji_spurious_val"), ("test", "emoji_spurious")):
        _, labels, _ = datasets.embedded_scenes("emoji_spurious", split)
        if split != "train":
            write_run(runs, run, "emojiclip", terms(len(labels), 6, 6, 128), labels, **own, **spurious)
        write_run(runs, run, "m-as-emojiclip", uneven_terms(len(labels), 128), labels, NAMES, **spurious, **text)
        write_run(runs, run, "m", uneven_terms(len(labels)), labels, NAMES, **spurious)
    write_classifier(runs, "emoji_spurious", "emojiclip", rng.normal(size=(128, 2)), **own, **spurious)
    for run in ("emoji", "emoji_train"):
        for model in ("m", "clip"):
            write_run(runs, run, model, terms(40, 2, 3, 7), np.arange(40) % 2)
    write_classifier(runs, "emoji", "clip", rng.normal(size=(7, 2)))
    for run in ("flowers", "flowers_train"):
        write_run(runs, run, "m", terms(20, 3, 2, 7), np.arange(20) % 2)
    drawn = len(datasets.embedded_scenes("emoji_seg")[1])
    write_run(runs, "emoji_seg", "emojiclip", terms(drawn, 1, 1, 8), np.zeros(drawn, int), **own,
              classes=datasets.class_names("emoji_seg"))
    write_classifier(runs, "emoji", "emojiclip", rng.normal(size=(128, 260)), **own,
                     classes=datasets.class_names("emoji"))
    (runs / "heads.yaml").write_text("model: emojiclip\ndataset: imagefolder\n"
                                    "heads:\n  color: 5.4 5.3\n  object: '5.1'\n")
    (runs / "features.yaml").write_text("color: [a red background, a blue one]\nobject: [a dog, a pizza]\n")
    (runs / "animals.yaml").write_text("animal: [a dog, a cat]\n")
    (runs / "questions.txt").write_text("What is {concept}?\nWhat is it?\n")
    row = {"concept": "a dog", "question": "What is a dog?", "description": "a pet", "seed": 0, "reward": 1.0}
    (runs / "d.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    bad = folder / "bad"
    (bad / "folder").mkdir(parents=True)
    for name, content in (("empty", b""), ("noise", bytes(range(256)) * 4), ("other.json", b'[1, {"a": null}]'),
                          ("other.yaml", b"- 1\n- a: [b]\n")):
        (bad / name).write_bytes(content)
    return {"runs": runs, "texts": texts, "images": folder / "images", "masks": folder / "masks", "pools": TEXTS,
            "lists": LISTS, "root": ROOT, "bad": bad}


@pytest.mark.parametrize("script, options, message", TABLE, ids=[f"{script} {options}" for script, options, _ in TABLE])
def test_options_that_cannot_be_are_one_line(refused, places, tiny_lm, tmp_path, monkeypatch, script, options, message):
    monkeypatch.chdir(ROOT)
    words = shlex.split(f"{COMMON.get(script, '')} {options}")
    line = refused(script, *(word.format(**places, lm=tiny_lm, out=tmp_path / "new") for word in words))
    assert message.format() in line
    assert not (tmp_path / "new").exists()


# Options by what their values mean: what is nowhere, what is empty, and what is no file of that kind. A script's line
# in COMMON, with what stands here, could run; each of its options is then given a bad value in turn.
FULL = {
    "compute_ablations": "--model emojiclip --dataset imagefolder --input_dir {runs}",
    "compute_prs": "--dataset imagefolder --data_path {images}",
    "compute_text_projection": "--model emojiclip --dataset imagefolder --data_path {images} --output_dir {out} "
                               "--device cpu",
    "compute_text_set_projection": "--model emojiclip --data_path {texts}/few.txt --output_dir {out} --device cpu",
    "compute_component_scores": "--features {runs}/features.yaml",
    "compute_heatmaps": "--model emojiclip --text a",
    "compute_nearest_neighbors": "--image {images}/a/0.png --property color",
    "compute_retrieval": "--text a",
    "compute_use_specific_heads": BY_TEXTS,
    "inspect": "--input_filepath {runs}/d.jsonl --dry_run",
    "scripts.compare_descriptions": "--before {runs}/d.jsonl --after {runs}/d.jsonl",
    "scripts.export_model": "--model_name {lm} --output_dir {out}",
    "scripts.sweep_textspan": "--pools few --texts_per_head 5",
}
# What an option needs beside it to be read at all.
BESIDE = {
    ("compute_component_repair", "--source_model"): "--classifier probe",
    }
# Options that take any text, those that others read, and images of data sets that are drawn.
FREE = {("compute_component_repair", "--pretrained"),
        ("make_report", "--data_path"), ("make_report", "--pretrained"), ("make_report", "--device"),  # read last
        ("compute_retrieval", "--data_path"), ("compute_component_repair", "--data_path"),
        ("compute_use_specific_heads", "--data_path"), ("scripts.build_class_descriptions", "--data_path"),
        ("train", "--data_root"), ("inference", "--data_root"),
        ("compute_complete_text_set", "--device"), ("inspect", "--base_url"), ("inspect", "--model"),
        ("inspect", "--dataset_name"), ("inspect", "--vlm_name"), ("inference", "--served_model_name"),
        ("compute_use_specific_heads", "--language_model"),
        ("scripts.build_class_descriptions", "--served_model_name")}
MEANT = ("FILE", "FOLDER", "PATH", "NAME", "TAG", "POOL", "LIST", "ROLE", "SPLIT", "URL", "X.")


def bad_values(action: argparse.Action, places: dict) -> list[str]:
    """Values of an option's own kind that mean nothing here."""
    metavar, result = str(action.metavar), action.dest.startswith(("output", "figures"))
    if action.dest == "device":
        return ["tpu", "meta", "cuda:99"]
    if action.dest in ("model_name", "base_model_name"):
        return ["./nowhere"]  # another name might be a hub's
    if result or action.choices or action.dest == "config" or not metavar.startswith(MEANT):
        return []
    bad = [str(places["bad"] / "nowhere") if metavar.startswith(("FILE", "FOLDER", "PATH", "X.")) else "nowhere"]
    if metavar == "FILE.txt":  # any lines may be texts
        bad += [str(places["bad"] / name) for name in ("empty", "noise")]
    elif metavar.startswith(("FILE", "PATH", "X.")):
        bad += [str(places["bad"] / name) for name in ("empty", "noise", "other.json", "other.yaml")]
    if metavar in ("FOLDER", "PATH"):
        bad += [str(places["bad"] / "folder")]
    return bad


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name in FULL or name in COMMON])
def test_no_option_takes_what_is_not_there(run_script, places, tiny_lm, tmp_path, monkeypatch, name):
    monkeypatch.chdir(ROOT)
    line = f"{COMMON.get(name, '')} {FULL.get(name, '')}"
    usual = [word.format(**places, lm=tiny_lm, out=tmp_path / "new") for word in shlex.split(line)]
    before, wrong = everything(places, tmp_path), []
    for _, action, _ in actions(load_script(name).get_args_parser()):
        option = action.option_strings[-1]
        for value in [] if (name, option) in FREE else bad_values(action, places):
            words = [*usual, *shlex.split(BESIDE.get((name, option), "")), option, value]
            for _ in range(2):  # the first one may import what the script needs
                start = time.process_time()
                try:
                    code, _, err = run_script(name, *words)
                except Exception as error:
                    code, err = "traceback", repr(error)
                seconds = time.process_time() - start
                if seconds < 3:
                    break
            said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
            if code != 2 or len(said) != 1 or not (option in said[0] or Path(value).name in said[0]) or seconds > 3:
                wrong.append((option, value, code, err[-400:], round(seconds, 1)))
    assert wrong == []
    assert everything(places, tmp_path) == before


def everything(places: dict, folder: Path) -> set[Path]:
    """All files that there are, but for those of Python."""
    return {path for root in (places["runs"].parent, folder) for path in root.rglob("*")}
