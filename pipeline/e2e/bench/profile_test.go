package main

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

func TestProfilesLoseAbsolutePathsOnly(t *testing.T) {
	var profile []byte
	for _, text := range []string{"", "/home/anna/millrace/build/bin/processor", "millrace/pipeline/codec/program.go", "cpu"} {
		profile = protowire.AppendString(protowire.AppendTag(profile, stringTable, protowire.BytesType), text)
	}
	profile = protowire.AppendVarint(protowire.AppendTag(profile, 12, protowire.VarintType), 10_000_000)
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(profile); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := withoutPaths(packed.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), "/home") || !strings.Contains(string(got), "millrace/pipeline/codec/program.go") || len(got) != len(profile)-len("/home/anna/millrace/build/bin/") {
		t.Errorf("the profile became %q", got)
	}
	if _, err := withoutPaths([]byte("no profile")); err == nil {
		t.Error("bytes that are no profile were accepted")
	}
}
