#!/bin/sh
# All GPUs of this machine. No launcher is needed: one process is started for each visible GPU.
#   CUDA_VISIBLE_DEVICES=0,1 sh configs/launch/one_node.sh --finetune_type lora --train_dataset train.jsonl …
exec python train.py --resume auto --save_steps 200 "$@"
