// The CIDs of some contents as IPFS's own importer gives them, with the settings of
// `ipfs add --cid-version=1`: [[size, cid], ...] on stdout. `run.py` compares them with ours.
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced } from 'ipfs-unixfs-importer/layout'
import { MemoryBlockstore } from 'blockstore-core/memory'

const BLOCK = 262144
const CHILDREN = 174
const PIECE = 1000003
const sizes = process.argv.slice(2).map(Number)

function content(size) {
  const bytes = new Uint8Array(size)
  for (let i = 0; i < size; i++) bytes[i] = i % 251
  return bytes
}

async function* pieces(bytes) {
  for (let i = 0; i < bytes.length; i += PIECE) yield bytes.subarray(i, i + PIECE)
}

const options = {
  cidVersion: 1,
  rawLeaves: true,
  chunker: fixedSize({ chunkSize: BLOCK }),
  layout: balanced({ maxChildrenPerNode: CHILDREN }),
  reduceSingleLeafToSelf: true
}
const found = []
for (const size of sizes) {
  let last
  const files = [{ path: 'x', content: pieces(content(size)) }]
  for await (const entry of importer(files, new MemoryBlockstore(), options)) last = entry
  found.push([size, last.cid.toString()])
}
console.log(JSON.stringify(found))
