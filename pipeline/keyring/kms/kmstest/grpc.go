package kmstest

import (
	"context"
	"errors"
	"hash/crc32"
	"net"
	"sync"
	"testing"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// GCP returns the service as Google Cloud KMS, and its address, without TLS.
func GCP(t testing.TB) (s *Service, addr string) {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = &Service{}
	server := grpc.NewServer()
	kmspb.RegisterKeyManagementServiceServer(server, &gcp{s: s})
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(at) }) // its error is that it was stopped
	t.Cleanup(func() {
		server.Stop()
		running.Wait()
	})
	return s, at.Addr().String()
}

type gcp struct {
	kmspb.UnimplementedKeyManagementServiceServer
	s *Service
}

func (g *gcp) fault() error {
	switch g.s.call("") {
	case Denied:
		return status.Error(codes.PermissionDenied, "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied")
	case Down, Silent:
		return status.Error(codes.Unavailable, "try again")
	case None:
	}
	return nil
}

func explain(err error) error {
	if errors.Is(err, errNotFound) {
		return status.Error(codes.NotFound, "CryptoKey not found")
	}
	return status.Error(codes.InvalidArgument, "Decryption failed: verify that 'name' refers to the correct CryptoKey")
}

// Encrypt implements the service.
func (g *gcp) Encrypt(_ context.Context, in *kmspb.EncryptRequest) (*kmspb.EncryptResponse, error) {
	if err := g.fault(); err != nil {
		return nil, err
	}
	out, err := g.s.encrypt(in.GetName(), in.GetPlaintext(), in.GetAdditionalAuthenticatedData())
	if err != nil {
		return nil, explain(err)
	}
	return &kmspb.EncryptResponse{
		Name: in.GetName() + "/cryptoKeyVersions/1", Ciphertext: out, CiphertextCrc32C: checksum(out),
		VerifiedPlaintextCrc32C: true, VerifiedAdditionalAuthenticatedDataCrc32C: true,
	}, nil
}

// Decrypt implements the service.
func (g *gcp) Decrypt(_ context.Context, in *kmspb.DecryptRequest) (*kmspb.DecryptResponse, error) {
	if err := g.fault(); err != nil {
		return nil, err
	}
	out, err := g.s.decrypt(in.GetName(), in.GetCiphertext(), in.GetAdditionalAuthenticatedData())
	if err != nil {
		return nil, explain(err)
	}
	return &kmspb.DecryptResponse{Plaintext: out, PlaintextCrc32C: checksum(out)}, nil
}

func checksum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}
