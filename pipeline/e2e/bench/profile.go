package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/encoding/protowire"
)

// stringTable is the number of string_table in the message Profile of
// github.com/google/pprof/proto/profile.proto.
const stringTable = 6

// profileMain writes a CPU profile for the compiler (go build -pgo) without the paths of
// the machine that it was taken on: an absolute path is replaced by its last element.
// Functions are not affected, because their files are relative (-trimpath).
func profileMain(args []string) error {
	flags := flag.NewFlagSet("bench profile", flag.ContinueOnError)
	out := flags.String("out", "", "`file` to write")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() != 1 || *out == "" {
		return errors.New("usage: bench profile -out FILE PROFILE")
	}
	packed, err := os.ReadFile(flags.Arg(0))
	if err != nil {
		return err
	}
	if packed, err = withoutPaths(packed); err != nil {
		return fmt.Errorf("%s: %w", flags.Arg(0), err)
	}
	return os.WriteFile(*out, packed, 0o644)
}

// withoutPaths replaces absolute paths in the string table of a gzipped profile.
func withoutPaths(packed []byte) ([]byte, error) {
	unpack, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	profile, err := io.ReadAll(unpack)
	if err != nil {
		return nil, err
	}
	var out []byte
	for len(profile) > 0 {
		_, _, n := protowire.ConsumeField(profile)
		if n < 0 {
			return nil, protowire.ParseError(n)
		}
		field := profile[:n]
		profile = profile[n:]
		number, kind, head := protowire.ConsumeTag(field)
		if number != stringTable || kind != protowire.BytesType {
			out = append(out, field...)
			continue
		}
		text, _ := protowire.ConsumeBytes(field[head:])
		if filepath.IsAbs(string(text)) {
			text = []byte(filepath.Base(string(text)))
		}
		out = protowire.AppendBytes(protowire.AppendTag(out, number, kind), text)
	}
	var buf bytes.Buffer
	pack := gzip.NewWriter(&buf)
	if _, err := pack.Write(out); err != nil {
		return nil, err
	}
	if err := pack.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
