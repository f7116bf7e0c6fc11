"""Nothing but the doors opens, writes, removes, starts or builds: each call that could is in the table below."""

import ast

from tests.test_layering import SOURCES, relative

# The last part of a call's name, wherever it is defined.
WATCHED = {
    "open", "fdopen", "memmap", "fromfile", "loadtxt", "genfromtxt", "load", "loads", "load_checkpoint", "imread",
    "VideoCapture", "read_text", "read_bytes", "safe_load", "compose", "parse_string", "parse_path",  # read
    "write_text", "write_bytes", "save", "savez", "savez_compressed", "imwrite", "savefig", "save_checkpoint", "tofile",
    "touch", "mkdir", "makedirs", "symlink_to", "symlink", "hardlink_to", "link", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory", "EventsWriter",  # write
    "unlink", "remove", "rmdir", "rmtree", "rename", "renames", "truncate", "ftruncate", "copy2", "copyfile",
    "copytree", "move",  # remove or replace
    "eval", "exec", "compile", "__import__", "import_module", "import_object", "run_path", "find_spec",
    "Unpickler",  # build
    "system", "popen", "Popen", "check_output", "check_call", "call", "spawn", "execv", "urlopen", "urlretrieve",
    "create_connection", "CDLL",  # start or fetch
}  # fmt: skip
STARTERS = {"subprocess.run"}
# Of the same name, but no file's: the door itself, regular expressions, networks and tensors, which read through it.
NO_FILES = {
    "read_text", "re.compile", "rename", "call", "self.save", "self.load", "part.load", "stage.load", "tensor.load",
    "self.stage.load", "self.engine.load", "engine.load", "conditioner.load", "self.network.open", "file.load",
    "image.load", "self.parse_string",
    "engine.conditioner.load", "engine.network.load", "engine.first_stage.load",
    "platform.system", "self.open", "cache.open", "self.batches.open", "operators.current.call",
    "self._model.call", "self._reader.call", "self._waiting.remove", "blocks.load",
}  # fmt: skip

DECODER = "a decoder, given a file that the door opened or looked at"
OWN = "a file of the project's, or of the system's, not of a user's"
CACHE = "in a folder of mode 0700 that is this user's"
OWN_FOLDER = "a temporary folder of the page's own"
HIDDEN = "in a hidden folder, which appears whole or not at all"
DEVELOPERS = "a developer's check of the project and of MindSpore, which takes no user's file"
ALLOWED = {
    "gm/files.py": (["os.open", "open", "json.loads", "os.ftruncate", "path.mkdir", "path.parent.mkdir", "path.rmdir",
                     "path.unlink", "shutil.rmtree", "tempfile.mkstemp", "tempfile.TemporaryFile"], "the door"),
    "gm/errors.py": (["open", "os.open"], "/dev/null, for an output that is closed"),
    "gm/config/factory.py": (["importlib.import_module", "yaml.compose", "OmegaConf.load"], "the door of YAML: targets "
                             "are looked up in a table first, and only text is parsed"),
    "gm/config/command_parser.py": (["super().parse_path", "yaml.load"], "a file that the door has read before"),
    "gm/backend/compile_cache.py": (["path.read_bytes", "directory.mkdir", "(folder / path.name).symlink_to",
                                     "lock.touch", "shutil.rmtree"], CACHE),
    "gm/backend/user_cache.py": (["path.mkdir", "parent.parent.mkdir"], CACHE),
    "gm/backend/kernel_fusion.py": (["find_spec", "log.unlink"], CACHE),
    "gm/backend/memory.py": (["PROCESS_STATUS.read_text", "limit_file.read_text", "usage_file.read_text"], OWN),
    "gm/backend/thread_placement.py": (["(folder / 'comm').read_text"], OWN),
    "gm/networks/tokenizer.py": (["gzip.open"], OWN),
    "gm/training/callbacks.py": (["EventsWriter"], "in a folder that own_folder made"),
    "gm/training/checkpoints.py": (["json.loads", "path.parent.mkdir", "shutil.rmtree"], "a run's own folders"),
    "modules/training/latent_cache.py": (["clip.broken_mark.unlink"], "an own mark"),
    "modules/training/validation.py": (["tempfile.TemporaryDirectory", "animation.read_bytes"], "a folder of its own"),
    "data/image_reader.py": (["Image.open"], DECODER),
    "data/video_writer.py": (["Image.fromarray(picture).save", "Image.open"], "names that the doors gave"),
    "data/video_container.py": (["av.open"], DECODER),
    "data/mp4_writer.py": (["subprocess.run"], "ffmpeg, by a list of arguments, with `file:` before each path"),
    "svd_tools/conversion/weight_files.py": (["torch.load", "ctypes.CDLL"], "weights_only; the C library, for madvise"),
    "svd_tools/conversion/diffusers_config.py": (["TEMPLATES.read_text", "json.loads"], OWN),
    "svd_tools/conversion/targets.py": (["(folder / name).write_text", "(folder / name).parent.mkdir"], HIDDEN),
    "data/motion_journal.py": (["self._path.unlink", "path.unlink"], "the journal, which the door has written"),
    "svd_tiny/make_clips.py": (["np.load", "(folder / SETTINGS).unlink"], "opened by the door; an own file"),
    "svd_tiny/photo_sources.py": (["open"], OWN),
    "svd_tiny/collect_photos.py": (["tempfile.TemporaryDirectory", "original.write_bytes", "SOURCES.read_bytes",
                                    "Image.fromarray(image).save"], "a folder of its own; into memory"),
    "svd_tools/page.py": (["tempfile.mkdtemp", "shutil.rmtree"], OWN_FOLDER),
    "svd_tools/web/studio.py": (["part.mkdir"], OWN_FOLDER),
    "svd_tools/web/jobs.py": (["job.folder.mkdir", "path.unlink", "shutil.rmtree"], OWN_FOLDER),
    "svd_tools/web/components.py": (["SCRIPT.read_text"], OWN),
    "svd_tools/web/preview.py": (["images[0].save"], "into memory"),
    "svd_tools/web/reader.py": (["image.save"], "into memory"),
    "svd_tools/check_ascend.py": (["path.read_text", "path.write_text", "script.write_text", "subprocess.run",
                                   "tempfile.TemporaryDirectory"], DEVELOPERS),
    "svd_tools/ascend/dry_run.py": (["(PROJECT / OFFLOAD).rmdir", "subprocess.run", "tempfile.TemporaryDirectory"],
                                    DEVELOPERS),
    "svd_tools/ascend/kernels.py": (["path.read_text"], DEVELOPERS),
    "svd_tools/ascend/stand_ins.py": (["(libraries / 'driver').mkdir", "functions.write_text", "path.parent.mkdir",
                                       "importlib.util.find_spec", "path.write_text", "plugin.read_bytes",
                                       "subprocess.run"], DEVELOPERS),
    "train.py": (["json.loads"], "what it has written itself"),
}  # fmt: skip


def calls(path):
    """The watched calls of a file, those on what `atomic_file` yields apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        watched = name in STARTERS or (name.rpartition(".")[2] in WATCHED and name not in NO_FILES)
        if watched and "temporary" not in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
            found.add(name)
    return found


def test_nothing_but_the_doors_touches_files_or_starts_anything():
    sources = [path for path in SOURCES if path.parent.name != "benchmarks"]
    found = {relative(path): names for path in sources if (names := calls(path))}
    assert found == {name: set(names) for name, (names, _) in ALLOWED.items()}
