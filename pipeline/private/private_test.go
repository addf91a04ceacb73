package private_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"millrace/pipeline/private"
)

// modes returns the modes of a directory and of everything in it, by path.
func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	found := map[string]fs.FileMode{}
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			name, _ := filepath.Rel(dir, path)
			found[name] = info.Mode().Perm()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsCreatedBelongsToTheOwner(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	must(t, private.Dir(filepath.Join(top, "a", "b")))
	f, err := private.Create(filepath.Join(top, "a", "created"))
	must(t, err)
	must(t, f.Close())
	must(t, private.Replace(filepath.Join(top, "a", "b", "replaced"), []byte("x")))
	got := modes(t, top)
	for name, mode := range map[string]fs.FileMode{".": 0o700, "a": 0o700, "a/b": 0o700, "a/created": 0o600, "a/b/replaced": 0o600} {
		if got[name] != mode {
			t.Errorf("%s has the mode %v, want %v", name, got[name], mode)
		}
	}
	if len(got) != 5 {
		t.Errorf("found %v", got)
	}
}

func TestExistingFilesAreNarrowedAndReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, write := range []func() error{
		func() error {
			f, err := private.Create(path)
			if err != nil {
				return err
			}
			_, err = f.WriteString("new")
			must(t, err)
			return f.Close()
		},
		func() error { return private.Replace(path, []byte("new")) },
	} {
		must(t, os.WriteFile(path, []byte("much longer"), 0o600))
		must(t, os.Chmod(path, 0o664))
		must(t, write())
		text, err := os.ReadFile(path)
		if got := modes(t, dir); err != nil || string(text) != "new" || got["f"] != 0o600 || len(got) != 2 {
			t.Errorf("%q %v %v", text, got, err)
		}
	}
}

func TestPipesAndDevicesKeepTheirModes(t *testing.T) {
	before, err := os.Stat(os.DevNull)
	must(t, err)
	f, err := private.Create(os.DevNull)
	must(t, err)
	must(t, f.Close())
	if after, err := os.Stat(os.DevNull); err != nil || after.Mode() != before.Mode() {
		t.Errorf("%s had the mode %v, and has %v: %v", os.DevNull, before.Mode(), after.Mode(), err)
	}
}

func TestNarrowRemovesTheRightsOfOthersEverywhere(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	must(t, os.MkdirAll(filepath.Join(dir, "db", "deep"), 0o755))
	must(t, os.Mkdir(filepath.Join(dir, "lost+found"), 0o755))
	for _, name := range []string{outside, filepath.Join(dir, "FORMAT"), filepath.Join(dir, "db", "deep", "1.sst")} {
		must(t, os.WriteFile(name, nil, 0o600))
		must(t, os.Chmod(name, 0o644))
	}
	must(t, os.WriteFile(filepath.Join(dir, "read-only"), nil, 0o400))
	must(t, os.Symlink(outside, filepath.Join(dir, "link")))
	must(t, os.Chmod(dir, 0o775))
	must(t, private.Narrow(dir))
	got := modes(t, dir)
	for name, mode := range map[string]fs.FileMode{".": 0o700, "db": 0o700, "db/deep": 0o700, "FORMAT": 0o600, "db/deep/1.sst": 0o600, "read-only": 0o400, "lost+found": 0o755} {
		if got[name] != mode {
			t.Errorf("%s has the mode %v, want %v", name, got[name], mode)
		}
	}
	if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("the target of a link has the mode %v: %v", info.Mode(), err)
	}
}
