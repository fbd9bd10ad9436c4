#!/usr/bin/env bash
# Beyond CLIP, from a fresh clone: decompose a vision transformer that never saw a text, map its components to a CLIP's
# space, and ask of them what one asks of a CLIP's: texts of heads, scores for features, ablation, retrieval, repair, heat
# maps, segmentation. 22 minutes on 2 busy CPU cores after the installation. A second run decomposes no image again.
#   bash scripts/beyond_clip_runner.sh
#   MODEL=timm:vit_base_patch14_dinov2.lvd142m CLIP=ViT-L-14 PRETRAINED=laion2b_s32b_b82k DATASET=imagenet DATA_PATH=DIR \
#       POOL=image_descriptions_general FEATURES=configs/features.yaml OUTPUT_DIR=DIR bash scripts/beyond_clip_runner.sh
# DATASET is any data set with a train split. Steps that need scenes of known truth are left out of others than emoji.
set -euo pipefail
cd "$(dirname "$0")/.."
MODEL=${MODEL:-timm:local-dir:models/emojivit}       # what is mapped
CLIP=${CLIP:-emojiclip}                              # to whose space
PRETRAINED=${PRETRAINED:-}                           # the CLIP's weights, where it needs a tag
DATASET=${DATASET:-emoji}
DATA_PATH=${DATA_PATH:-}                             # folder of the images, where the data set needs one
POOL=${POOL:-emoji_descriptions}                     # of texts
FEATURES=${FEATURES:-configs/features_emoji.yaml}
OUTPUT_DIR=${OUTPUT_DIR:-output_dir/beyond_clip}

bash scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
run() { echo "+ python $*" >&2; python "$@"; }
names=$(python -c 'import sys; from utils.models.names import file_name; print(*map(file_name, sys.argv[1:]))' "$MODEL" "$CLIP")
read -r model clip <<< "$names"
mapped=$model-as-$clip
maps=$OUTPUT_DIR/${DATASET}_train_maps_${model}_to_$clip.safetensors
of_clip=(--model "$CLIP" ${PRETRAINED:+--pretrained "$PRETRAINED"})
data=(--dataset "$DATASET" ${DATA_PATH:+--data_path "$DATA_PATH"})
truth=()
[ "$DATASET" = emoji ] && truth=(--truth)
from=(--input_dir "$OUTPUT_DIR")
to=(--output_dir "$OUTPUT_DIR")

# Decompose both models, and map one to the space of the other.
for split in "" train; do
    run compute_prs.py --model "$MODEL" "${data[@]}" ${split:+--split $split} --batch_size 64 --resume "${to[@]}"
    run compute_prs.py "${of_clip[@]}" "${data[@]}" ${split:+--split $split} --batch_size 64 --resume "${to[@]}"
done
run compute_alignment.py --model "$MODEL" --clip "$CLIP" --dataset "$DATASET" --lr 1e-4 --epochs 8 "${from[@]}" "${to[@]}"

# What do heads look at, what has to do with colour, what can the model do without, what is alike?
run compute_text_projection.py "${of_clip[@]}" "${data[@]}" "${to[@]}"
run compute_text_set_projection.py "${of_clip[@]}" --data_path "text_descriptions/$POOL.txt" "${to[@]}"
run compute_complete_text_set.py --model "$mapped" --dataset "$DATASET" --num_of_last_layers 4 --text_descriptions "$POOL" \
    "${from[@]}" "${to[@]}"
run compute_component_scores.py --model "$mapped" --dataset "$DATASET" --features "$FEATURES" "${truth[@]}" "${from[@]}"
run compute_component_scores.py "${of_clip[@]}" --dataset "$DATASET" --features "$FEATURES" "${truth[@]}" "${from[@]}"
run compute_component_ablation.py --model "$CLIP" "$mapped" --dataset "$DATASET" "${from[@]}"
run compute_retrieval.py --model "$mapped" "${data[@]}" --features "$FEATURES" --feature color \
    --text "something red" "something blue" "${from[@]}" --output_dir "$OUTPUT_DIR/by_text"
if [ "$DATASET" = emoji ]; then
    run compute_retrieval.py --model "$mapped" "${data[@]}" --features "$FEATURES" --feature color object \
        --index 5 "${from[@]}" --output_dir "$OUTPUT_DIR/by_image"
    run compute_head_truth.py --model "$mapped" --dataset emoji --text_descriptions "$POOL" "${from[@]}"

    # Repair a classifier that goes by backgrounds.
    for split in train val ""; do
        run compute_prs.py --model "$MODEL" --dataset emoji_spurious ${split:+--split $split} --batch_size 64 --resume \
            "${to[@]}"
    done
    run compute_alignment.py --model "$MODEL" --clip "$CLIP" --dataset emoji_spurious --maps "$maps" --apply val test \
        "${from[@]}" "${to[@]}"
    run compute_text_projection.py "${of_clip[@]}" --dataset emoji_spurious "${to[@]}"
    for classifier in texts probe; do
        run compute_component_repair.py --model "$mapped" --dataset emoji_spurious --classifier "$classifier" \
            --spurious_texts text_descriptions/spurious_backgrounds_emoji.txt \
            --core_texts text_descriptions/core_animals_emoji.txt "${from[@]}"
    done

    # Where in the image?
    run compute_segmentations.py --model "$MODEL" --maps "$maps" --train_dataset emoji_seg --classifier_dataset emoji \
        --classifier_dir "$OUTPUT_DIR" "${to[@]}"
    scene=$OUTPUT_DIR/scene.png
    python -c 'import sys; from utils.data import datasets; datasets.load_images("emoji").read(5)[0].save(sys.argv[1])' "$scene"
    run compute_heatmaps.py --model "$MODEL" --maps "$maps" --image "$scene" --text "a tiger" "a black background" \
        --output "$OUTPUT_DIR/scene_heatmaps.png"
fi

echo "
$MODEL is now read in the texts of $CLIP: --model $mapped --input_dir $OUTPUT_DIR. The pictures:
  $OUTPUT_DIR/${DATASET}_component_scores_$mapped.png: which components go with colour, object, ...
  $OUTPUT_DIR/${DATASET}_component_ablation.png: accuracy of both models with fewer and fewer layers
  $OUTPUT_DIR/by_text/${DATASET}_retrieval_$mapped.png: images found by a text"
[ "$DATASET" != emoji ] || echo "\
  $OUTPUT_DIR/by_image/emoji_retrieval_$mapped.png: scenes like a scene, by colour and by object
  $OUTPUT_DIR/emoji_head_truth_$mapped.png: is what the texts say of each head true?
  $OUTPUT_DIR/emoji_spurious_component_repair_texts_$mapped.png: a classifier repaired, and
  $OUTPUT_DIR/emoji_spurious_component_repair_probe_$mapped.png: a linear head
  $OUTPUT_DIR/scene_heatmaps.png: where a scene is a tiger, and where black"
echo "The texts of the heads: $OUTPUT_DIR/${DATASET}_completeness_${POOL}_top_10_heads_$mapped.txt"
