package producer

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func gzipped(t testing.TB, members ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, text := range members {
		z := gzip.NewWriter(&b)
		if _, err := io.WriteString(z, text); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

// readLines returns every line of a source as "input:number text", every piece of a
// long line as "input:number start 123 bytes", and the error that ended it.
func readLines(ctx context.Context, source lineSource) (lines []string, err error) {
	for {
		b, err := source.next(ctx)
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, err
		}
		if b.long != wholeLines {
			name := map[piece]string{longStart: "start", longMore: "more"}[b.long]
			lines = append(lines, fmt.Sprintf("%s:%d %s %d bytes", b.input, b.first, name, len(b.data)))
			continue
		}
		start := 0
		for i, end := range b.ends {
			lines = append(lines, fmt.Sprintf("%s:%d %q", b.input, b.first+i, b.data[start:end]))
			start = end
		}
		if start != len(b.data) {
			lines = append(lines, fmt.Sprintf("%d bytes are in no line", len(b.data)-start))
		}
	}
}

func TestLinesOfAFile(t *testing.T) {
	const twoLines = `in:1 "a\n"` + "\n" + `in:2 "b\n"`
	whole := gzipped(t, "a\nb\n")
	broken := bytes.Clone(whole)
	broken[len(broken)-5] ^= 1 // in the checksum
	for _, test := range []struct {
		name  string
		in    []byte
		want  string
		wants string // of the error
	}{
		{"plain", []byte("a\nb\n"), twoLines, ""},
		{"no newline at the end", []byte("a\nb"), `in:1 "a\n"` + "\n" + `in:2 "b"`, ""},
		{"empty", nil, "", ""},
		{"only a newline", []byte("\n"), `in:1 "\n"`, ""},
		{"CRLF is part of the line", []byte("a\r\nb\r\n"), `in:1 "a\r\n"` + "\n" + `in:2 "b\r\n"`, ""},
		{"byte order mark", []byte("\ufeffa\nb\n"), twoLines, ""},
		{"byte order mark and nothing", []byte("\ufeff"), "", ""},
		{"invalid UTF-8 and NUL", []byte("\xff\x00\n"), `in:1 "\xff\x00\n"`, ""},
		{"gzip", whole, twoLines, ""},
		{"gzip of several members", gzipped(t, "a\n", "", "b\n"), twoLines, ""},
		{"gzip members that divide a line", gzipped(t, "a", "\nb\n"), twoLines, ""},
		{"gzip of nothing", gzipped(t, ""), "", ""},
		{"gzip of a byte order mark", gzipped(t, "\ufeffa\nb\n"), twoLines, ""},
		{"gzip that ends too soon", whole[:len(whole)-4], twoLines, "in: after line 2: unexpected EOF"},
		{"gzip of no more than its head", whole[:5], "", "in: unexpected EOF"},
		{"gzip with a wrong checksum", broken, twoLines, "in: after line 2: gzip: invalid checksum"},
		{"gzip with text after it", append(bytes.Clone(whole), "text"...), twoLines, "in: after line 2: "},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if err := os.WriteFile("in", test.in, 0o600); err != nil {
				t.Fatal(err)
			}
			source := readFiles(t.Context(), []string{"in"}, nil)
			lines, err := readLines(t.Context(), source)
			if got := strings.Join(lines, "\n"); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
			if (err == nil) != (test.wants == "") || err != nil && !strings.HasPrefix(err.Error(), test.wants) {
				t.Errorf("got error %v, want %q", err, test.wants)
			}
		})
	}
}

func TestLinesOfSeveralInputs(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"one": "1\n2", "three": "3\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	source := readFiles(t.Context(), []string{"one", "-", "three", "absent", "one"}, strings.NewReader("x\n"))
	lines, err := readLines(t.Context(), source)
	const want = `one:1 "1\n"|one:2 "2"|stdin:1 "x\n"|three:1 "3\n"`
	if got := strings.Join(lines, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, again := source.next(t.Context()); !errors.Is(again, os.ErrNotExist) {
		t.Errorf("the next call: %v", again)
	}
}

func TestTooLongLineComesInPieces(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	for name, test := range map[string]struct{ in, before, after string }{
		"in the middle": {"a\n" + long + "\nb\n", `in:1 "a\n"`, `in:3 "b\n"`},
		"at the end":    {"a\n" + long + "x", `in:1 "a\n"`, ""},
		"first":         {long + "x\nb", "", `in:2 "b"`},
	} {
		t.Run(name, func(t *testing.T) {
			source := readFiles(t.Context(), []string{"-"}, strings.NewReader(test.in))
			lines, err := readLines(t.Context(), source)
			if err != nil {
				t.Fatal(err)
			}
			size, pieces, line := 0, 0, 0
			var others []string
			for _, l := range lines {
				var input, kind string
				var n, bytes int
				if _, err := fmt.Sscanf(strings.Replace(l, ":", " ", 1), "%s %d %s %d bytes", &input, &n, &kind, &bytes); err != nil {
					others = append(others, strings.Replace(l, "stdin", "in", 1))
					continue
				}
				if (kind == "start") != (pieces == 0) || line != 0 && n != line {
					t.Errorf("piece %d is %s", pieces, l)
				}
				size, pieces, line = size+bytes, pieces+1, n
			}
			if want := strings.TrimSpace(test.before + " " + test.after); strings.Join(others, " ") != want {
				t.Errorf("the other lines are %v, want %s", others, want)
			}
			if want := len(test.in) - strings.Count(test.in, "a\n")*2 - strings.Count(test.in, "\nb")*len("b"); pieces == 0 || size > want || size < maxLine {
				t.Errorf("%d bytes in %d pieces", size, pieces)
			}
		})
	}
	t.Run("the longest valid line", func(t *testing.T) {
		lines, err := readLines(t.Context(), readFiles(t.Context(), []string{"-"}, strings.NewReader(long[1:]+"\n"+"b")))
		if err != nil || len(lines) != 2 || lines[1] != `stdin:2 "b"` {
			t.Errorf("%d lines, %v", len(lines), err)
		}
	})
}

func TestReadErrorKeepsTheLinesBefore(t *testing.T) {
	in := io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(errors.New("input/output error")))
	lines, err := readLines(t.Context(), readFiles(t.Context(), []string{"-"}, in))
	if got := strings.Join(lines, "|"); got != `stdin:1 "a\n"|stdin:2 "b"` {
		t.Error(got)
	}
	if err == nil || err.Error() != "stdin: after line 2: input/output error" {
		t.Error(err)
	}
}

func TestInterruptedReaderEnds(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	ctx, cancel := context.WithCancel(t.Context())
	source := readFiles(ctx, []string{"-"}, in)
	go func() {
		_, _ = io.WriteString(out, "event\n") // then silence
	}()
	if b, err := source.next(ctx); err != nil || string(b.data) != "event\n" {
		t.Fatalf("%v, %v", b, err)
	}
	cancel()
	if _, err := source.next(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// conserved checks that the lines of a source, concatenated, are the text, divided
// at its newlines and numbered from 1.
func conserved(ctx context.Context, source lineSource, text []byte) error {
	var all bytes.Buffer
	number, part := 1, false // part: a long line is incomplete
	for {
		b, err := source.next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if part && b.long != longMore {
			number, part = number+1, false
		}
		if b.first != number {
			return fmt.Errorf("a batch begins with line %d, want line %d", b.first, number)
		}
		all.Write(b.data)
		if b.long != wholeLines {
			part = true
			continue
		}
		start := 0
		for _, end := range b.ends {
			line := b.data[start:end]
			if i := bytes.IndexByte(line, '\n'); i >= 0 && i != len(line)-1 {
				return fmt.Errorf("line %d holds a newline: %q", number, line)
			}
			start, number = end, number+1
		}
	}
	if !bytes.Equal(all.Bytes(), text) {
		return fmt.Errorf("got %d of %d bytes", all.Len(), len(text))
	}
	return nil
}

func TestEveryByteComesOnceAndInOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var text []byte
		for range rapid.IntRange(0, 40).Draw(rt, "lines") {
			text = append(text, bytes.Repeat([]byte("x"), rapid.SampledFrom([]int{0, 1, 80, 4096, 64<<10 - 1, 64 << 10, 128 << 10, 200_000}).Draw(rt, "length"))...)
			text = append(text, '\n')
		}
		text = text[:len(text)-min(len(text), rapid.IntRange(0, 1).Draw(rt, "cut"))]
		in := text
		if rapid.Bool().Draw(rt, "gzip") {
			in = gzipped(t, string(text))
		}
		var r io.Reader = bytes.NewReader(in)
		if rapid.Bool().Draw(rt, "slowly") {
			r = iotest.HalfReader(r)
		}
		if err := conserved(t.Context(), readFiles(t.Context(), []string{"-"}, r), text); err != nil {
			rt.Fatal(err)
		}
	})
}

// FuzzLines: the bytes of any file come once and in order, or it is broken and the
// error says where.
func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"))
	f.Add([]byte("\ufeff{}\r\n\r\n"))
	f.Add(gzipped(f, "a\n", "b\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		want, broken := in, false
		if bytes.HasPrefix(in, []byte{0x1f, 0x8b}) {
			z, err := gzip.NewReader(bytes.NewReader(in))
			if err == nil {
				want, err = io.ReadAll(io.LimitReader(z, 1<<20))
			}
			broken = err != nil || len(want) == 1<<20
		}
		want = bytes.TrimPrefix(want, []byte("\ufeff"))
		if err := conserved(t.Context(), readFiles(t.Context(), []string{"-"}, bytes.NewReader(in)), want); err != nil && !broken {
			t.Fatalf("%q: %v", in, err)
		}
	})
}

func TestDirectoryAndMissingFileAreRefusedBeforeAnythingIsSent(t *testing.T) {
	dir := t.TempDir()
	for name, want := range map[string]string{dir: "is a directory", filepath.Join(dir, "absent"): "no such file"} {
		p := &producer{}
		if err := p.send(t.Context(), []string{name}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
