package tasks

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"meshnode/protocol"
)

// macKey authenticates grants: a result that comes back after the origin forgot the grant (it was lost, or the
// origin was started anew) proves with the MAC that this attempt was really granted to its sender. So grants
// need not be on disk before they leave.
type macKey struct {
	h   hash.Hash
	buf []byte
	sum []byte
}

// macSize truncates HMAC-SHA256 to 128 bits: enough against a guess over the network.
const macSize = 16

func newMACKey(key [32]byte) macKey { return macKey{h: hmac.New(sha256.New, key[:])} }

// of is the MAC of a granted to worker. The result is the caller's.
func (k *macKey) of(a protocol.Attempt, worker protocol.NodeID) []byte {
	k.buf = append(k.buf[:0], "meshnode grant 1"...)
	k.buf = append(k.buf, a.Job[:]...)
	k.buf = binary.LittleEndian.AppendUint32(k.buf, a.Index)
	k.buf = binary.LittleEndian.AppendUint32(k.buf, a.N)
	k.buf = binary.LittleEndian.AppendUint64(k.buf, a.Epoch)
	k.buf = append(k.buf, worker...)
	k.h.Reset()
	k.h.Write(k.buf)
	k.sum = k.h.Sum(k.sum[:0])
	return append([]byte(nil), k.sum[:macSize]...)
}

func (k *macKey) verify(a protocol.Attempt, worker protocol.NodeID, mac []byte) bool {
	return hmac.Equal(k.of(a, worker), mac)
}
