"""Moved to utils/cli.py."""
from utils.cli import gather, gather_in_order as in_rounds, is_main_process as leads  # noqa: F401, I001
from utils.cli import own_batches as share, process_count as number, start_processes as start  # noqa: F401
