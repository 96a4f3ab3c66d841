"""Training steps of the C-U-Net (CNN control, complex FiLM) in PyTorch, for ``make bench``.

Run by an interpreter that has PyTorch; the study itself never needs it. Arguments: filters, batch
size, threads, precision (float32 or bfloat16). Then reads numbers of steps from standard input,
and answers each with the seconds that they took.
"""

# ruff: noqa: D101, D102, D103

import sys
import time

import torch
from torch import nn

SHAPE = (512, 128)
BLOCKS = 6


class Encoder(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        # "Same" with stride 2 and kernel 5 pads one before and two after.
        self.convolution = nn.Conv2d(inputs, outputs, 5, stride=2)
        self.normalization = nn.BatchNorm2d(outputs, momentum=0.1, eps=1e-3)

    def forward(self, x, gamma, beta):
        x = self.normalization(self.convolution(nn.functional.pad(x, (1, 2, 1, 2))))
        x = x * gamma[:, :, None, None] + beta[:, :, None, None]
        return nn.functional.leaky_relu(x, 0.2)


class Decoder(nn.Module):
    def __init__(self, inputs, outputs, dropout, last):
        super().__init__()
        self.convolution = nn.ConvTranspose2d(
            inputs, outputs, 5, stride=2, padding=2, output_padding=1
        )
        self.normalization = nn.BatchNorm2d(outputs, momentum=0.1, eps=1e-3)
        self.dropout = nn.Dropout(dropout)
        self.last = last

    def forward(self, x):
        x = self.dropout(self.normalization(self.convolution(x)))
        return torch.sigmoid(x) if self.last else torch.relu(x)


class CUNet(nn.Module):
    def __init__(self, filters):
        super().__init__()
        self.channels = [filters * 2**block for block in range(BLOCKS)]
        self.encoders = nn.ModuleList(
            Encoder(a, b) for a, b in zip([1, *self.channels[:-1]], self.channels, strict=True)
        )
        outputs = [*reversed(self.channels[:-1]), 1]
        inputs = [self.channels[-1], *(2 * size for size in outputs[:-1])]
        self.decoders = nn.ModuleList(
            Decoder(a, b, 0.5 if 1 <= block < BLOCKS - 2 else 0.0, block == BLOCKS - 1)
            for block, (a, b) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.control = nn.Sequential(
            nn.Conv1d(1, 32, 4, padding="same"),
            nn.ReLU(),
            nn.Conv1d(32, 64, 4, padding="same"),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.BatchNorm1d(64),
            nn.Conv1d(64, 256, 4),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.BatchNorm1d(256),
            nn.Flatten(),
        )
        self.gammas = nn.Linear(256, sum(self.channels))
        self.betas = nn.Linear(256, sum(self.channels))

    def forward(self, mixture, condition):
        z = self.control(condition[:, None])
        gammas = self.gammas(z).split(self.channels, dim=1)
        betas = self.betas(z).split(self.channels, dim=1)
        x, skips = mixture, []
        for encoder, gamma, beta in zip(self.encoders, gammas, betas, strict=True):
            x = encoder(x, gamma, beta)
            skips.append(x)
        for block, decoder in enumerate(self.decoders):
            x = decoder(torch.cat([skips[-1 - block], x], dim=1) if block else x)
        return mixture * x.float()


def main():
    filters, batch, threads = map(int, sys.argv[1:4])
    bfloat16 = sys.argv[4] == "bfloat16"
    torch.set_num_threads(threads)
    condition = torch.eye(4).repeat(batch // 4 + 1, 1)[:batch]
    network = CUNet(filters)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    patches = torch.rand(batch, 1, *SHAPE)

    def seconds(steps, layout):
        network.to(memory_format=layout)
        mixture = patches.to(memory_format=layout)
        start = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                estimate = network(mixture, condition)
            torch.mean(torch.abs(0.5 * mixture - estimate)).backward()
            optimizer.step()
        return time.perf_counter() - start

    # Which layout is faster depends on processor and version; PyTorch shall have the better one.
    layouts = (torch.contiguous_format, torch.channels_last)
    for layout in layouts:
        seconds(1, layout)
    best = min(layouts, key=lambda layout: seconds(2, layout))
    print(torch.__version__, flush=True)
    for line in sys.stdin:
        print(seconds(int(line), best), flush=True)


if __name__ == "__main__":
    main()
